"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { columns, rows, labels } = data;
  const at = Object.fromEntries(columns.map((name, i) => [name, i]));
  const PAGE = 100;
  const { palette: COLOURS, shapes: MARKERS } = data;
  const el = (id) => document.getElementById(id);
  const make = (name, attributes = {}, text = null) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    return node;
  };
  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
  const label = (name) => labels[name] || name;
  const shown = (value) => {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number") return String(value);
    if (Number.isInteger(value)) return value.toLocaleString("en");
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };

  async function copy(row) {
    const command = row[at.command];
    if (!command) { say(`${row[at.name]} has no recorded command`); return; }
    try {
      await navigator.clipboard.writeText(command);
    } catch {
      const area = document.createElement("textarea");
      area.value = command;
      area.style.position = "fixed";
      area.style.opacity = "0";
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) { say(command); return; }
    }
    say(`copied: ${command}`);
  }
  function say(text) { for (const id of ["said", "said-too"]) el(id).textContent = text; }

  // The scatter plot of any two numeric columns.
  const numeric = columns.filter((name) => name !== "command" && new Set(rows.map((r) => r[at[name]]).filter(isNumber)).size > 1);
  const colourable = columns.filter((name) => {
    if (["name", "command", "run_dir"].includes(name)) return false;
    const values = new Set(rows.map((r) => r[at[name]]));
    return values.size > 1 && (values.size <= COLOURS.length || numeric.includes(name));
  });
  const pick = { x: el("x"), y: el("y"), colour: el("colour") };
  function offer(select, names, first) {
    for (const name of names) select.add(new Option(label(name), name));
    select.value = first.find((name) => names.includes(name)) ?? names[0] ?? "";
    select.addEventListener("change", draw);
  }
  offer(pick.x, numeric, [data.x, "width"]);
  offer(pick.y, numeric, [data.y, "test_accuracy"]);
  offer(pick.colour, colourable, ["model", "seed"]);
  el("log").addEventListener("change", draw);

  function ticks(low, high, log) {
    if (log) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
        for (const step of [1, 2, 5]) {
          const value = step * 10 ** power;
          if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
        }
      if (found.length > 9) return found.filter((value) => Math.abs(Math.log10(value) % 1) < 1e-9);
      if (found.length > 1) return found;
    }
    const raw = (high - low) / 5 || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((s) => s * power).find((s) => s >= raw);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(Number(value.toPrecision(12)));
    return found;
  }

  function scale(values, log, from, to) {
    let low = Math.min(...values), high = Math.max(...values);
    if (low === high) { low -= Math.abs(low) / 10 || 1; high += Math.abs(high) / 10 || 1; }
    const f = log ? Math.log : (v) => v;
    const pad = (f(high) - f(low)) * 0.05;
    const a = f(low) - pad, b = f(high) + pad;
    const position = (v) => from + ((f(v) - a) / (b - a)) * (to - from);
    const g = log ? Math.exp : (v) => v;
    return { position, ticks: ticks(g(a), g(b), log) };
  }

  function colours(name) {
    const values = [...new Set(rows.map((r) => r[at[name]]))];
    if (values.length <= COLOURS.length) {
      values.sort((a, b) => (isNumber(a) && isNumber(b) ? a - b : String(a).localeCompare(String(b))));
      const of = (v) => (name === "model" ? data.models[v] : [COLOURS[values.indexOf(v)], MARKERS[values.indexOf(v)]]);
      return { of, keys: values.map((v) => [shown(v), ...of(v)]) };
    }
    const numbers = values.filter(isNumber);
    const low = Math.min(...numbers), high = Math.max(...numbers);
    const shade = (v) => { // from dark blue to yellow, lighter for larger values
      const t = isNumber(v) ? (v - low) / (high - low || 1) : 0;
      return isNumber(v) ? `hsl(${260 - 205 * t} 70% ${32 + 26 * t}%)` : COLOURS.at(-1);
    };
    return { of: (v) => [shade(v), MARKERS[0]], keys: [low, (low + high) / 2, high].map((v) => [shown(v), shade(v), MARKERS[0]]) };
  }

  function draw() {
    const svg = el("scatter"), keys = el("keys");
    svg.replaceChildren(); keys.replaceChildren();
    const [x, y, colour] = [pick.x.value, pick.y.value, pick.colour.value];
    const there = rows.filter((r) => isNumber(r[at[x]]) && isNumber(r[at[y]]));
    if (!there.length) { svg.append(make("text", { x: 20, y: 40 }, "no run has values for both axes")); return; }
    const narrow = svg.parentElement.clientWidth < 560;
    const W = narrow ? 480 : 960, H = narrow ? 420 : 480, left = 74, right = W - 14, top = 12, bottom = H - 52;
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    const xs = there.map((r) => r[at[x]]), ys = there.map((r) => r[at[y]]);
    const log = el("log").checked && Math.min(...xs) > 0 && Math.max(...xs) > 1.5 * Math.min(...xs);
    const across = scale(xs, log, left, right), up = scale(ys, false, bottom, top);
    for (const value of across.ticks) {
      const p = across.position(value);
      svg.append(make("line", { class: "grid", x1: p, x2: p, y1: top, y2: bottom }), make("text", { x: p, y: bottom + 19, "text-anchor": "middle" }, shown(value)));
    }
    for (const value of up.ticks) {
      const p = up.position(value);
      svg.append(make("line", { class: "grid", x1: left, x2: right, y1: p, y2: p }), make("text", { x: left - 7, y: p + 4, "text-anchor": "end" }, shown(value)));
    }
    svg.append(make("line", { class: "frame", x1: left, x2: right, y1: bottom, y2: bottom }), make("line", { class: "frame", x1: left, x2: left, y1: top, y2: bottom }));
    svg.append(make("text", { x: (left + right) / 2, y: H - 8, "text-anchor": "middle", id: "x-label" }, label(x)));
    svg.append(make("text", { transform: `translate(15 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", id: "y-label" }, label(y)));
    svg.setAttribute("aria-label", `Scatter of ${there.length} runs: ${label(y)} against ${label(x)}, coloured by ${label(colour)}`);
    const paint = colour ? colours(colour) : { of: () => [COLOURS[0], MARKERS[0]], keys: [] };
    const dots = document.createDocumentFragment();
    for (const row of there) {
      const [fill, marker] = paint.of(row[at[colour]]);
      const position = `translate(${across.position(row[at[x]]).toFixed(2)} ${up.position(row[at[y]]).toFixed(2)})`;
      const dot = make("path", { class: "dot", d: marker, fill, "fill-opacity": 0.85, transform: position, "data-name": row[at.name] });
      const describe = () => say(`${row[at.name]}: ${label(x)} ${shown(row[at[x]])}, ${label(y)} ${shown(row[at[y]])}, ${label(colour)} ${shown(row[at[colour]])}, seed ${shown(row[at.seed])}; click copies its command`);
      dot.append(make("title", {}, row[at.name]));
      dot.addEventListener("pointerenter", describe);
      dot.addEventListener("click", () => copy(row));
      dots.append(dot);
    }
    svg.append(dots);
    for (const [name, fill, marker] of paint.keys) {
      const item = document.createElement("li");
      const sample = make("svg", { viewBox: "-7 -7 14 14", "aria-hidden": "true" });
      sample.append(make("path", { d: marker, fill }));
      item.append(sample, `${label(colour)} ${name}`);
      keys.append(item);
    }
    const missing = rows.length - there.length;
    el("missing").textContent = missing ? `${missing} run${missing === 1 ? "" : "s"} without ${label(x)} or ${label(y)}: not drawn.` : "";
  }

  // The table of runs, sorted by any column and filtered by words.
  let sorted = { name: null, down: false }, limit = PAGE, wanted = rows;
  const head = el("head"), body = el("body");
  for (const name of data.shown) {
    const cell = document.createElement("th");
    cell.scope = "col";
    if (numeric.includes(name)) cell.className = "n";
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label(name);
    button.addEventListener("click", () => sort(name));
    cell.dataset.name = name;
    cell.append(button);
    head.append(cell);
  }
  const last = document.createElement("th");
  last.scope = "col";
  last.textContent = "command";
  head.append(last);

  function sort(name) {
    sorted = { name, down: sorted.name === name ? !sorted.down : false };
    for (const cell of head.children) {
      if (cell.dataset.name === name) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    fill();
  }
  function compare(a, b) {
    const none = (v) => v === null || v === undefined;
    if (none(a) || none(b)) return none(a) - none(b); // missing values come last in both directions
    const order = isNumber(a) && isNumber(b) ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return sorted.down ? -order : order;
  }
  function fill() {
    const list = sorted.name ? [...wanted].sort((a, b) => compare(a[at[sorted.name]], b[at[sorted.name]])) : wanted;
    const lines = document.createDocumentFragment();
    for (const row of list.slice(0, limit)) {
      const line = document.createElement("tr");
      for (const name of data.shown) {
        const cell = document.createElement("td");
        if (numeric.includes(name)) cell.className = "n";
        cell.textContent = shown(row[at[name]]);
        line.append(cell);
      }
      const cell = document.createElement("td");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "copy";
      button.title = row[at.command] || "";
      button.setAttribute("aria-label", `copy the command of ${row[at.name]}`);
      button.addEventListener("click", () => copy(row));
      cell.append(button);
      line.append(cell);
      lines.append(line);
    }
    body.replaceChildren(lines);
    el("count").textContent = `${Math.min(limit, list.length)} of ${list.length} runs shown`;
    el("more").hidden = limit >= list.length;
  }
  el("more").addEventListener("click", () => { limit += 10 * PAGE; fill(); });
  el("filter").addEventListener("input", () => {
    const words = el("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    wanted = rows.filter((row) => { const text = row.join(" ").toLowerCase(); return words.every((word) => text.includes(word)); });
    fill();
  });

  let width = 0;
  new ResizeObserver(() => {
    const now = el("scatter").parentElement.clientWidth < 560;
    if (width !== now) { width = now; draw(); }
  }).observe(el("scatter").parentElement);
  draw();
  fill();
})();
