"use strict";
// The pool, twice a second: pool/state says what runtime/service/snapshot_view.py made.

const POLL_MS = 500, SHOWN_S = 30, LANE = 24, DELAY_S = 0.7;
const $ = id => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");

let key = sessionStorage.getItem("key") || "";
let pool = null, receivedAt = 0, failures = 0, isPaused = false, sort = "queue";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") Object.assign(made.style, value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Changes only what differs, so that focus, selection and screen readers are left alone.
function text(target, value) {
  if (target.textContent !== value) target.textContent = value;
}

// numbers

const count = value => Math.round(value).toLocaleString("en-US");
const whole = share => `${Math.round(100 * share)} %`;
const percent = share => share === null ? "–" : (share >= 0.9995 ? "100" : (100 * share).toFixed(1)) + " %";

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.9995) return `${value < 0.00995 ? (1000 * value).toFixed(1) : Math.round(1000 * value)} ms`;
  return value < 100 ? `${value.toFixed(1)} s` : `${Math.round(value)} s`;
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${value < 9.95 && unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

const grade = share => share === null || share >= 0.99 ? "" : share >= 0.9 ? "warn" : "bad";

function hue(model) { return (model * 137.508 + 210) % 360; }

function colour(model, shade = 0, alpha = 1) {
  const style = getComputedStyle(document.documentElement);
  const lightness = parseFloat(style.getPropertyValue("--lightness")) + shade;
  return `hsl(${hue(model)} ${style.getPropertyValue("--saturation")} ${lightness}% / ${alpha})`;
}

// the service

function headers() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function poll() {
  if (!document.hidden && !isPaused) {
    try {
      const answer = await fetch("pool/state", { headers: headers(), cache: "no-store" });
      if (answer.status === 401 || answer.status === 403) askForKey(await fault(answer));
      else if (!answer.ok) throw new Error(await fault(answer));
      else accept(await answer.json());
    } catch (error) {
      failures += 1;
      if (failures > 1) lose(error.message);
    }
  }
  setTimeout(poll, failures > 4 ? 4 * POLL_MS : POLL_MS);
}

async function fault(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `status ${answer.status}`;
  }
}

function accept(snapshot) {
  failures = 0;
  $("lost").hidden = true;
  pool = snapshot;
  receivedAt = performance.now();
  showAll();
}

function lose(reason) {
  $("lost").hidden = false;
  text($("lost"), `No answer from the service (${reason}); asking again.`);
  $("status").className = "pill bad";
  text($("status"), "lost");
}

function askForKey(reason) {
  $("key-button").hidden = false;
  $("status").className = "pill warn";
  text($("status"), key ? "key refused" : "key needed");
  if (!$("key-form").hidden) return;
  $("key-form").hidden = false;
  $("key-form").querySelector("label").textContent =
    key ? `The service refused the key: ${reason}` : "This service asks for an API key.";
  $("key").focus();
}

// header and figures

function showAll() {
  const down = pool.instances.filter(g => g.stage === "down").length;
  $("status").className = `pill ${pool.status !== "ok" || down ? "warn" : "ok"}`;
  text($("status"), pool.status !== "ok" ? pool.status : down ? `${down} down` : "running");
  showPolicy(pool.policy);
  showFigures();
  showLanes();
  showCurves();
  showModels();
  showMemory();
  showChoices();
  if (still.matches) draw();
}

function showPolicy(policy) {
  const answers = policy.answers || {};
  const total = Object.values(answers).reduce((sum, n) => sum + n, 0);
  const own = answers.policy || 0, other = total - own;
  const parts = [];
  if (policy.next) parts.push(`${policy.next} takes over when it is ready`);
  if (policy.is_up === false) parts.push("its process is down");
  if (total) {
    const why = Object.entries(answers).filter(([name, n]) => name !== "policy" && n);
    parts.push(other ? `fallback ${policy.fallback || ""} answered ${count(other)} of ${count(total)} decisions`
      + ` (${why.map(([name, n]) => `${name} ${count(n)}`).join(", ")})`
      : `${count(total)} decisions, no fallback`);
  }
  if (policy.restarts) parts.push(`${policy.restarts} restarts`);
  const shown = `${policy.name || "?"}|${parts.join(" · ")}`;
  if ($("policy").dataset.shown === shown) return;
  $("policy").dataset.shown = shown;
  $("policy").title = policy.last_error || "";
  $("policy").replaceChildren("policy ", element("b", {}, policy.name || "?"), parts.length ? " · " + parts.join(" · ") : "");
}

const last = column => column.length ? column[column.length - 1] : null;

function showFigures() {
  const c = pool.curves, totals = pool.totals;
  const lateTokens = last(c.attainment);
  const failed = totals.failed + totals.shed;
  figure("tokens on time", percent(lateTokens), "", grade(lateTokens));
  figure("first token", seconds(last(c.ttft_p50_s)), `p99 ${seconds(last(c.ttft_p99_s))}`);
  figure("between tokens", seconds(last(c.tbt_p50_s)), `p99 ${seconds(last(c.tbt_p99_s))}`);
  figure("tokens/s", count(last(c.tokens_s) || 0), "");
  figure("in flight", count(totals.in_flight), `${count(totals.waiting)} wait`);
  figure("served", count(totals.done), failed ? `${count(failed)} not` : "");
  figure("switches", count(totals.switches), totals.prefetched_switches ? `${count(totals.prefetched_switches)} prefetched` : "");
}

function figure(name, value, note, look = "") {
  const id = `figure-${name.replace(/\W/g, "-")}`;
  let box = $(id);
  if (!box) {
    box = element("div", { id }, element("dt", {}, name), element("dd", {}, element("span"), " ", element("small")));
    $("figures").append(box);
  }
  const [, shown] = box.children;
  shown.className = look;
  text(shown.children[0], value);
  text(shown.children[1], note);
}

// instances

const WORDS = { commanded: "loads", blocked: "waits for room", kv_in: "KV in", ending: "ends", prefill: "prefill",
  decode: "decode", idle: "idle", free: "idle", down: "down" };

function showLanes() {
  const lanes = $("lanes");
  while (lanes.children.length > pool.instances.length) lanes.lastChild.remove();
  pool.instances.forEach((g, i) => {
    let lane = lanes.children[i];
    if (!lane) {
      lane = element("li", {}, element("b", {}, String(i)), element("i", { class: "dot" }),
        element("span", { class: "name" }), element("span", { class: "what" }));
      lanes.append(lane);
    }
    const [, dot, name, what] = lane.children;
    dot.style.background = g.model === null ? "transparent" : colour(g.model);
    const word = WORDS[g.stage] || g.stage;
    text(name, g.model === null ? word : pool.models[g.model].name);
    text(what, g.model === null ? "" : g.stage === "decode" ? `decode ×${g.batch}` : word);
    lane.title = `instance ${i}: ${word}${g.model === null ? "" : " " + pool.models[g.model].name}`;
  });
}

function draw() {
  const canvas = $("bars"), scale = devicePixelRatio || 1;
  const width = canvas.clientWidth, height = LANE * pool.instances.length;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const line = style.getPropertyValue("--line"), bad = style.getPropertyValue("--bad");
  const dark = style.getPropertyValue("--dark"), card = style.getPropertyValue("--card");
  const lightness = parseFloat(style.getPropertyValue("--lightness")), saturation = style.getPropertyValue("--saturation");
  const paint = (model, shade, alpha) => `hsl(${hue(model)} ${saturation} ${lightness + shade}% / ${alpha})`;
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.strokeStyle = line;
  pen.beginPath();
  for (let part = 0; part <= 6; part += 1) {
    const x = Math.min(width - 0.5, Math.round(width * part / 6) + 0.5);
    pen.moveTo(x, 0);
    pen.lineTo(x, height);
  }
  pen.stroke();
  const kinds = pool.span_kinds, from = shownTo() - SHOWN_S, perSecond = width / SHOWN_S;
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  const labels = new Map();  // instance -> its last run of one model: a label spans prefills
  const write = ([x, y, end, model]) => {
    const name = pool.models[model].name, fits = Math.floor((Math.min(width, end) - Math.max(0, x) - 8) / 6.4);
    pen.fillStyle = card;
    if (fits >= Math.min(5, name.length)) {
      pen.fillText(name.length > fits ? name.slice(0, fits - 1) + "…" : name, Math.max(0, x) + 4, y);
    }
  };
  const runs = [];
  for (const [g, kind, model, start, length] of pool.spans) {
    const x = (start / 1000 - from) * perSecond, end = x + length / 1000 * perSecond;
    if (end < 0 || x > width) continue;
    const name = kinds[kind], wide = Math.max(0.7, end - x);
    const top = g * LANE + 3, tall = LANE - 6;
    if (name === "down") { pen.fillStyle = bad; pen.fillRect(x, top + tall / 2 - 1.5, wide, 3); continue; }
    pen.fillStyle = name === "switch" ? paint(model, 0, 0.32) : name === "blocked" || name === "kv_in" ? dark
      : paint(model, name === "prefill" ? -18 : 0, 1);
    pen.fillRect(x, top, wide, tall);
    if (name !== "decode" && name !== "prefill") continue;
    const run = labels.get(g);
    if (run && run[3] === model && x - run[2] < 2) run[2] = end;
    else {
      labels.set(g, [x, top + tall / 2 + 0.5, end, model]);
      runs.push(labels.get(g));
    }
  }
  runs.forEach(write);
}

// A little in the past, so that it moves evenly between answers.
function shownTo() {
  const passed = still.matches || isPaused ? 0 : Math.min(2, (performance.now() - receivedAt) / 1000);
  return pool.time_s + passed - (still.matches ? 0 : DELAY_S);
}

function frame() {
  if (pool && !isPaused && !document.hidden && !still.matches) draw();
  requestAnimationFrame(frame);
}

function showTip(event) {
  const tip = $("tip"), box = $("bars").getBoundingClientRect();
  if (!pool) return;
  const at = shownTo() - SHOWN_S + (event.clientX - box.left) / box.width * SHOWN_S;
  const lane = Math.floor((event.clientY - box.top) / LANE);
  const hit = pool.spans.find(([g, , , start, length]) => g === lane && start / 1000 <= at && at <= (start + length) / 1000);
  tip.hidden = !hit;
  if (!hit) return;
  const [g, kind, model, , length, n] = hit;
  const what = { switch: "weights load", kv_in: "KV moves in", blocked: "waits for room" }[pool.span_kinds[kind]] || pool.span_kinds[kind];
  text(tip, `instance ${g}: ${what}${model >= 0 ? " " + pool.models[model].name : ""}, ${seconds(length / 1000)}${n ? `, ${n} requests` : ""}`);
  const host = tip.parentElement.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX - host.left + 12, host.width - tip.offsetWidth - 8))}px`;
  tip.style.top = `${event.clientY - host.top + 16}px`;
}

// curves

const CHARTS = [
  { name: "tokens on time", columns: ["attainment"], form: percent, high: 1, ticks: [0, 0.5, 1], mark: whole },
  { name: "first token", columns: ["ttft_p50_s", "ttft_p99_s"], form: seconds },
  { name: "between tokens", columns: ["tbt_p50_s", "tbt_p99_s"], form: seconds },
  { name: "tokens/s", columns: ["tokens_s"], form: count },
];

function showCurves() {
  CHARTS.forEach((chart, i) => {
    let box = $("curves").children[i];
    if (!box) {
      box = element("figure", {}, element("figcaption"), document.createElementNS("http://www.w3.org/2000/svg", "svg"));
      $("curves").append(box);
    }
    drawCurve(box, chart);
  });
}

function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map(step => step * power).find(step => step >= value * 0.999);
}

function svg(tag, attributes, content) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (content !== undefined) made.textContent = content;
  return made;
}

function drawCurve(box, chart) {
  const [caption, picture] = box.children, c = pool.curves;
  const values = chart.columns.flatMap(name => c[name]).filter(value => value !== null);
  const high = chart.high || ceiling(Math.max(1e-3, ...values));
  const ticks = chart.ticks || [0, high / 2, high];
  const width = picture.clientWidth || 300, height = picture.clientHeight || 130, left = 46, right = 4, top = 8, bottom = 6;
  const x = t => left + (width - left - right) * (1 - (pool.time_s - t) / 60);
  const y = value => height - bottom - (height - top - bottom) * Math.min(1, value / high);
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  picture.setAttribute("role", "img");
  const newest = chart.columns.map(name => last(c[name]));
  const told = chart.columns.length > 1 ? `p50 ${chart.form(newest[0])}, p99 ${chart.form(newest[1])}` : chart.form(newest[0]);
  picture.setAttribute("aria-label", `${chart.name}: ${told}`);
  caption.replaceChildren(element("span", {}, chart.name), ...chart.columns.map((name, k) => element("span", {},
    chart.columns.length > 1 ? element("span", { class: k ? "two" : "one" }, k ? "p99 " : "p50 ") : "",
    element("b", {}, chart.form(newest[k])))));
  const parts = ticks.flatMap(tick => [
    svg("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
    svg("text", { class: "tick", x: left - 5, y: y(tick) + 3, "text-anchor": "end" },
      tick ? (chart.mark || chart.form)(tick) : "0"),
  ]);
  chart.columns.forEach((name, k) => {
    let path = "", isOpen = false;
    c[name].forEach((value, i) => {
      if (value === null || x(c.time_s[i]) < left) { isOpen = false; return; }
      path += `${isOpen ? "L" : "M"}${x(c.time_s[i]).toFixed(1)} ${y(value).toFixed(1)}`;
      isOpen = true;
    });
    if (path) parts.push(svg("path", { class: `curve ${k ? "two" : "one"}`, d: path }));
  });
  picture.replaceChildren(...parts);
}

// models

const queue = model => model.waiting + model.ready + model.running;
const ORDERS = {
  name: (a, b) => a.name.localeCompare(b.name, "en", { numeric: true }),
  queue: (a, b) => queue(b) - queue(a),
  late: (a, b) => b.late - a.late,
  oldest: (a, b) => b.oldest_wait_s - a.oldest_wait_s,
  attainment: (a, b) => (a.attainment === null) - (b.attainment === null) || a.attainment - b.attainment,
};

function showModels() {
  const body = document.querySelector("#models tbody");
  const where = pool.models.map(() => []);
  pool.instances.forEach((g, i) => { if (g.model !== null) where[g.model].push(i); });
  const held = pool.models.map(() => []);
  pool.instances.forEach((g, i) => g.held.forEach(slot => {
    if (slot.model !== g.model) held[slot.model].push(slot.state === "loading" ? `${i} loads` : String(i));
  }));
  const order = pool.models.map((model, m) => ({ ...model, m }));
  order.sort((a, b) => ORDERS[sort](a, b) || a.m - b.m);
  const longest = Math.max(8, ...order.map(queue)), room = innerWidth < 640 ? 28 : 60;
  while (body.children.length > order.length) body.lastChild.remove();
  order.forEach((model, i) => {
    let row = body.children[i];
    if (!row) {
      row = element("tr", {}, element("td", {}, element("i", { class: "dot" }), element("span")),
        element("td", {}, element("div", { class: "queue" }, element("i", { class: "q-running" }),
          element("i", { class: "q-ready" }), element("i", { class: "q-waiting" }), element("span"))),
        ...[1, 2, 3, 4].map(() => element("td")));
      body.append(row);
    }
    const [name, bars, late, wait, share, on] = row.children;
    name.children[0].style.background = colour(model.m);
    name.title = `${model.name}: ${bytes(model.weight_bytes)}, first token within ${seconds(model.ttft_s)}, then one each ${seconds(model.tbt_s)}`;
    text(name.children[1], model.name);
    const parts = bars.firstChild.children;
    ["running", "ready", "waiting"].forEach((phase, k) => { parts[k].style.width = `${room * model[phase] / longest}px`; });
    bars.title = `${model.running} running, ${model.ready} between turns, ${model.waiting} without a first token`;
    text(parts[3], queue(model) ? String(queue(model)) : "");
    text(late, model.late ? String(model.late) : "");
    late.className = model.late ? "bad" : "";
    text(wait, model.waiting ? seconds(model.oldest_wait_s) : "");
    wait.className = model.waiting && model.oldest_wait_s > model.ttft_s ? "bad" : "";
    text(share, percent(model.attainment));
    share.className = model.attainment === null ? "soft" : grade(model.attainment);
    const also = held[model.m];
    text(on, where[model.m].join(" ") + (also.length ? `${where[model.m].length ? " " : ""}(${also.join(", ")})` : ""));
    on.className = where[model.m].length ? "" : "soft";
    on.title = "instances that run it (in brackets: that hold its weights)";
  });
  const active = order.filter(queue).length;
  text($("models-note"), `${active} of ${order.length} with requests`);
}

// memory

function showMemory() {
  const rows = [
    ...pool.instances.map((g, i) => ({ name: `instance ${i}`, total: g.memory_bytes,
      parts: [["m-weights", g.weight_bytes], ["m-kv", g.kv_used_bytes]],
      note: `${bytes(g.weight_bytes)} + KV ${bytes(g.kv_used_bytes)}`,
      title: `weights ${bytes(g.weight_bytes)}; KV ${bytes(g.kv_used_bytes)} of at most ${bytes(g.kv_bytes)}; memory ${bytes(g.memory_bytes)}` })),
    ...pool.nodes.flatMap((node, d) => {
      const name = pool.nodes.length > 1 ? `host ${d}` : "host";
      return [
        { name: `${name} weights`, total: node.weight_bytes, parts: [["m-weights", node.weight_used_bytes]],
          note: `${bytes(node.weight_used_bytes)} of ${bytes(node.weight_bytes)}` },
        { name: `${name} KV`, total: node.kv_bytes, parts: [["m-kv", node.kv_used_bytes]],
          note: `${bytes(node.kv_used_bytes)} of ${bytes(node.kv_bytes)}, ${node.kv_requests} requests` },
      ];
    }),
  ];
  const host = $("memory");
  while (host.children.length > rows.length) host.lastChild.remove();
  rows.forEach((row, i) => {
    let box = host.children[i];
    if (!box) {
      box = element("div", {}, element("p", {}, element("b"), element("span")), element("div", { class: "bar" }, element("i"), element("i")));
      host.append(box);
    }
    const [label, bar] = box.children;
    box.title = row.title || "";
    text(label.children[0], row.name);
    text(label.children[1], row.note);
    [0, 1].forEach(k => {
      const [look, size] = row.parts[k] || ["", 0];
      bar.children[k].className = look;
      bar.children[k].style.width = `${row.total ? Math.min(100, 100 * size / row.total) : 0}%`;
    });
  });
}

// chat

let talk = [], abort = null;

function showChoices() {
  const choice = $("chat-model"), names = pool.models.map(model => model.name);
  if (choice.dataset.shown === names.join("\n")) return;
  const before = choice.value;
  choice.dataset.shown = names.join("\n");
  choice.replaceChildren(...names.map(name => element("option", { value: name }, name)));
  if (names.includes(before)) choice.value = before;
}

function say(who, words, look = "") {
  const box = element("p", { class: look }, element("span", { class: "who" }, who), words);
  $("talk").append(box);
  $("talk").scrollTop = $("talk").scrollHeight;
  return box.appendChild(document.createTextNode(""));
}

async function send(event) {
  event.preventDefault();
  const words = $("chat-text").value.trim(), model = $("chat-model").value;
  if (!words || !model || abort) return;
  $("chat-text").value = "";
  talk.push({ role: "user", content: words });
  say("you", words);
  const shown = say(model, "");
  const asked = performance.now();
  let first = null, tokens = 0, said = "";
  abort = new AbortController();
  $("chat-send").disabled = true;
  $("chat-stop").disabled = false;
  try {
    const answer = await fetch("v1/chat/completions", {
      method: "POST", signal: abort.signal, headers: { ...headers(), "Content-Type": "application/json" },
      body: JSON.stringify({ model, messages: talk, max_tokens: Number($("chat-tokens").value) || 128, stream: true,
        stream_options: { include_usage: true } }),
    });
    if (answer.status === 401 || answer.status === 403) askForKey(await answer.clone().text());
    if (!answer.ok) throw new Error(await fault(answer));
    for await (const chunk of events(answer.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) tokens = chunk.usage.completion_tokens;
      const part = chunk.choices && chunk.choices[0] && chunk.choices[0].delta && chunk.choices[0].delta.content;
      if (!part) continue;
      first = first === null ? performance.now() : first;
      said += part;
      shown.data = said;
      $("talk").scrollTop = $("talk").scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") say("error", error.message, "error");
  }
  if (said) talk.push({ role: "assistant", content: said });
  else {
    talk.pop();
    shown.parentElement.remove();
  }
  const took = (performance.now() - asked) / 1000;
  text($("chat-note"), first === null ? "" : `first token ${seconds((first - asked) / 1000)}` +
    (tokens ? `, ${tokens} tokens in ${seconds(took)}` : `, ${seconds(took)} in all`));
  abort = null;
  $("chat-send").disabled = false;
  $("chat-stop").disabled = true;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function startOver() {
  if (abort) abort.abort();
  talk = [];
  $("talk").replaceChildren();
  text($("chat-note"), "");
  $("chat-text").focus();
}

// controls

function pause() {
  isPaused = !isPaused;
  $("pause").setAttribute("aria-pressed", String(isPaused));
  text($("pause"), isPaused ? "Go on" : "Pause");
}

function start() {
  $("axis").append(...[30, 25, 20, 15, 10, 5, 0].map(s => element("span", {}, s ? `−${s} s` : "now")));
  $("pause").addEventListener("click", pause);
  $("chat").addEventListener("submit", send);
  $("chat-stop").addEventListener("click", () => abort && abort.abort());
  $("chat-new").addEventListener("click", startOver);
  $("chat-text").addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
  });
  $("key-button").addEventListener("click", () => { $("key-form").hidden = false; $("key").focus(); });
  $("key-form").addEventListener("submit", event => {
    event.preventDefault();
    key = $("key").value.trim();
    sessionStorage.setItem("key", key);
    $("key").value = "";
    $("key-form").hidden = true;
  });
  document.addEventListener("keydown", event => {
    const isTyping = /INPUT|TEXTAREA|SELECT/.test(event.target.tagName);
    if (event.key === "p" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) pause();
  });
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      sort = button.dataset.sort;
      for (const other of document.querySelectorAll("[data-sort]")) other.setAttribute("aria-pressed", String(other === button));
      if (pool) showModels();
    });
  }
  $("bars").addEventListener("pointermove", showTip);
  $("bars").addEventListener("pointerleave", () => { $("tip").hidden = true; });
  addEventListener("resize", () => { if (pool) { draw(); showCurves(); } });
  requestAnimationFrame(frame);
  poll();
}

start();
