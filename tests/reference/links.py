"""What the links carry. An instance has one transfer in, KV before weights, and one out.

The n transfers in one direction of a root port have 1/n of it each. Whenever their number is about
to change, those under way are settled: what is left of each, as if alone on its port.
"""

import math

from reference.nouns import Instance, Request, Transfer
from reference.physics import Physics
from runtime.core import NONE, KvPlace


class Links(Physics):
    instances: list[Instance]
    now_ns: int

    def _port(self, inst: Instance) -> list[Instance]:
        """The instances that share its root port."""
        per_node, per_port = self.spec.instances_per_node, self.spec.instances_per_port
        place = inst.index % per_node // per_port
        on_node = [i for i in self.instances if i.node == inst.node]
        return [i for i in on_node if i.index % per_node // per_port == place]

    def _way_in(self, inst: Instance) -> Transfer | None:
        """What comes in now: its KV, else the load under way."""
        if inst.kv_in is not None:
            return inst.kv_in
        return inst.load if inst.load is not None and inst.load.since_ns != NONE else None

    def _is_leaving(self, inst: Instance) -> bool:
        return any(r.kv == KvPlace.MOVING_OUT for r in inst.outgoing)

    def _in_flows(self, inst: Instance) -> int:
        return sum(self._way_in(i) is not None for i in self._port(inst))

    def _out_flows(self, inst: Instance) -> int:
        return sum(self._is_leaving(i) for i in self._port(inst))

    def _slow(self, transfer: Transfer, flows: int) -> float:
        return max(1.0, flows * transfer.share)

    def _end_ns(self, transfer: Transfer, flows: int) -> int:
        return transfer.since_ns + math.ceil(transfer.left_ns * self._slow(transfer, flows))

    def _rest_ns(self, transfer: Transfer, flows: int) -> int:
        """What is left of it, as if alone on its port."""
        if transfer.since_ns == NONE:
            return transfer.left_ns
        passed = int((self.now_ns - transfer.since_ns) / self._slow(transfer, flows))
        return max(0, transfer.left_ns - passed)

    def _settle_transfer(self, transfer: Transfer | None, flows: int) -> None:
        if transfer is not None:
            transfer.left_ns, transfer.since_ns = self._rest_ns(transfer, flows), self.now_ns

    def _before_in_changes(self, inst: Instance) -> None:
        flows = self._in_flows(inst)
        for other in self._port(inst):
            self._settle_transfer(self._way_in(other), flows)

    def _before_out_changes(self, inst: Instance) -> None:
        flows = self._out_flows(inst)
        for other in self._port(inst):
            self._settle_transfer(other.kv_out, flows)

    def _begin_kv_in(self, inst: Instance) -> None:
        """All that waits to come in, as one group; a load under way waits."""
        moved = sum(self._moved_bytes(r) for r in inst.incoming)
        far = sum(self._moved_bytes(r) for r in inst.incoming if r.node != inst.node)
        seconds = self._kv_in_s(moved, far)
        share = moved / self._h2d / seconds
        left_ns = self._kv_in_ns(inst, seconds)
        if inst.load is not None and inst.load.since_ns != NONE:
            self._settle_transfer(inst.load, self._in_flows(inst))
            inst.load.since_ns = NONE
        else:
            self._before_in_changes(inst)
        inst.kv_in = Transfer(left_ns, share, self.now_ns, len(inst.incoming))

    def _end_kv_in(self, inst: Instance) -> None:
        if inst.load is None:
            self._before_in_changes(inst)
        else:
            inst.load.since_ns = self.now_ns
        inst.kv_in = None

    def _begin_load(self, inst: Instance, left_ns: int, share: float) -> None:
        """It waits while KV comes in; it takes the place of a load under way."""
        if self._way_in(inst) is None:
            self._before_in_changes(inst)
        since_ns = self.now_ns if inst.kv_in is None else NONE
        inst.load = Transfer(left_ns, share, since_ns)

    def _end_load(self, inst: Instance) -> None:
        if inst.load is not None and inst.load.since_ns != NONE:
            self._before_in_changes(inst)
        inst.load = None

    def _start_group(self, inst: Instance) -> None:
        """If nothing is on its way out, all that has room starts to move."""
        if inst.kv_out is not None or not self._is_leaving(inst):
            return
        moving = [r for r in inst.outgoing if r.kv == KvPlace.MOVING_OUT]
        left_ns = self._kv_out_ns(sum(self._moved_bytes(r) for r in moving))
        inst.kv_out = Transfer(left_ns, 1.0, self.now_ns, len(moving))

    def _take_out(self, inst: Instance, r: Request) -> None:
        """r no longer leaves."""
        moving = [o for o in inst.outgoing if o.kv == KvPlace.MOVING_OUT]
        if moving == [r]:
            self._before_out_changes(inst)
        inst.outgoing.remove(r)
