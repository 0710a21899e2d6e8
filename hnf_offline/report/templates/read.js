"use strict";
// Crosshair and read-out. The pictures hold the data: lines are read from their paths, cells from their pixels.
const nums = s => s.split(" ").map(Number);
for (const svg of document.querySelectorAll("svg[data-steps]")) {
  const [low, high, left, right] = nums(svg.dataset.steps), out = svg.closest("figure").querySelector(".read");
  const cross = document.createElementNS(svg.namespaceURI, "path");
  cross.setAttribute("class", "cross"); svg.append(cross);
  const height = svg.viewBox.baseVal.height, strips = nums((svg.dataset.strips || "").replaceAll(",", " "));
  const groups = [...svg.querySelectorAll("g[data-axis]")], cells = svg.querySelector("image.cells:not(.veil)");
  let pixels, ramp, x = left, y = 0;
  const read = image => { const i = new Image(); i.src = image.getAttribute("href");
    return i.decode().then(() => { const c = document.createElement("canvas"); c.width = i.width; c.height = i.height;
      const d = c.getContext("2d"); d.drawImage(i, 0, 0); return d.getImageData(0, 0, i.width, i.height); }); };
  const at = (d, i, j) => d.data.slice(4 * (j * d.width + i), 4 * (j * d.width + i) + 4).join();
  const cell = () => { const [top, tall, limit, ...form] = svg.dataset.map.split(" "), rows = svg.dataset.rows.split("|");
    const row = Math.floor((y - top) / tall), b = cells.getBBox(), col = Math.floor((x - b.x) / b.width * pixels.width);
    if (!(row in rows) || !(col >= 0 && col < pixels.width)) return "";
    const colour = at(pixels, col, row); let place = -1;
    if (colour.endsWith(",0")) return rows[row] + ": not measured";
    if (ramp) for (let i = 0; i < ramp.width; i++) if (at(ramp, i, 0) === colour) place = i;
    const v = (2 * place / 252 - 1) * limit, text = form[0] === "log" ? "×" + Math.exp(v).toPrecision(2) : v.toPrecision(2);
    const band = [...svg.querySelectorAll("rect.swatch")].find(r => r.dataset.rgb + ",255" === colour);
    return rows[row] + (place >= 0 ? ": about " + text : band ? ": " + band.nextElementSibling.textContent : ""); };
  const points = d => d.split("M").slice(1).flatMap(piece => { const [start, moves = ""] = piece.split(/[lh]/);
    let [px, py] = nums(start); const all = [[px, py]], m = piece.includes("l") ? nums(moves) : [];
    for (let k = 0; k + 1 < m.length; k += 2) all.push([px += m[k], py += m[k + 1]]); return all; });
  const lines = groups.map(g => [...g.querySelectorAll("path.line")].map(l => [l.dataset.label || "", points(l.getAttribute("d"))]));
  // The nearest measured point is read, with its own step: nothing is interpolated.
  const value = (g, i) => lines[i].map(([label, all]) => { const [a, b, scale] = g.dataset.axis.split(" "), [top, tall] = strips.slice(2 * i);
    const p = all.reduce((best, q) => !best || Math.abs(q[0] - x) < Math.abs(best[0] - x) ? q : best, null);
    if (!p || Math.abs(p[0] - x) > 24) return "";
    const s = 1 - (p[1] - top) / tall, v = scale === "log" ? a * (b / a) ** s : +a + (b - a) * s, its = stepAt(p[0]);
    return `${label} ${v.toPrecision(3)}` + (its === stepAt(x) ? "" : ` (step ${its})`); }).filter(Boolean).join(", ");
  const stepAt = px => Math.round(low + (px - left) / (right - left) * (high - low));
  const show = () => { x = Math.min(Math.max(x, left), right); cross.setAttribute("d", `M${x} 0V${height}` + (cells ? `M${left} ${y}H${right}` : ""));
    const told = groups.map((g, i) => [g.querySelector(".strip").textContent, value(g, i)]).filter(one => one[1]).map(one => one.join(" "));
    out.textContent = `step ${stepAt(x)}  ` + (cells ? (pixels ? cell() : "") : told.join("  ·  ")); };
  if (cells) { read(cells).then(d => pixels = d); const r = svg.querySelector("image.ramp"); if (r) read(r).then(d => ramp = d); }
  svg.addEventListener("pointermove", e => { const p = new DOMPoint(e.clientX, e.clientY).matrixTransform(svg.getScreenCTM().inverse()); x = p.x; y = p.y; show(); });
  svg.addEventListener("keydown", e => { const d = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (!d) return; e.preventDefault(); x += d[0] * (right - left) / (pixels ? pixels.width : 200);
    if (svg.dataset.map) { const [top, tall] = nums(svg.dataset.map); y = Math.max(y, top + tall / 2) + d[1] * tall; } show(); });
}
