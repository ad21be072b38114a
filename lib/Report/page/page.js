'use strict';
(() => {
const data = JSON.parse(document.getElementById('data').textContent);
const byId = id => document.getElementById(id);
const colours = {weights: '#0072b2', scales: '#56b4e9', keys: '#d55e00', values: '#e69f00',
                 activations: '#009e73', arithmetic: '#cc79a7', boundaries: '#999999'};

// ---- Text and SVG ----

const svgNamespace = document.documentElement.namespaceURI.replace('1999/xhtml', '2000/svg');
function node(name, attributes = {}, ...children) {
  const element = document.createElementNS(svgNamespace, name);
  for (const [key, value] of Object.entries(attributes))
    element.setAttribute(key, value);
  element.append(...children);
  return element;
}
const titled = (element, text) => { element.append(node('title', {}, text)); return element; };
function digits(value) {
  return value === 0 ? '0' : value >= 99.5 ? value.toFixed(0) : value >= 9.95 ? value.toFixed(1) : value >= 0.995 ? value.toFixed(2) : value.toPrecision(2);
}
function prefixed(value, unit) {
  const prefixes = ['', 'k', 'M', 'G', 'T', 'P'];
  let i = 0;
  for (; value >= 999.5 && i + 1 < prefixes.length; ++i)
    value /= 1000;
  return digits(value) + ' ' + prefixes[i] + unit;
}
const time = seconds => seconds >= 1e-3 ? digits(seconds * 1e3) + ' ms' : digits(seconds * 1e6) + ' µs';

/// A chart with room for axes around its plot: what is drawn goes to `plot`.
function chart(figure, width, height, margin, label) {
  const svg = node('svg', {viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label});
  figure.replaceChildren(svg);
  return {svg, left: margin.left, right: width - margin.right, top: margin.top, bottom: height - margin.bottom};
}
/// Round numbers, about `count` of them, from 0 to `most`.
function ticks(most, count) {
  const rough = most / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(f => f * power).find(s => s >= rough);
  const result = [];
  for (let value = 0; value <= most * (1 + 1e-9); value += step)
    result.push(value);
  return result;
}
function powers(low, high) {
  const result = [];
  for (let e = Math.ceil(Math.log10(low) - 1e-9); 10 ** e <= high * (1 + 1e-9); ++e)
    result.push(10 ** e);
  return result;
}
function xAxis(c, values, x, text, name) {
  for (const value of values) {
    c.svg.append(node('line', {class: 'axis', x1: x(value), x2: x(value), y1: c.bottom, y2: c.bottom + 5}));
    c.svg.append(node('text', {class: 'soft', x: x(value), y: c.bottom + 19, 'text-anchor': 'middle'}, text(value)));
  }
  c.svg.append(node('line', {class: 'axis', x1: c.left, x2: c.right, y1: c.bottom, y2: c.bottom}));
  c.svg.append(node('text', {x: (c.left + c.right) / 2, y: c.bottom + 38, 'text-anchor': 'middle'}, name));
}
function yAxis(c, values, y, text, name) {
  for (const value of values) {
    c.svg.append(node('line', {class: 'grid', x1: c.left, x2: c.right, y1: y(value), y2: y(value)}));
    c.svg.append(node('text', {class: 'soft', x: c.left - 8, y: y(value) + 4, 'text-anchor': 'end'}, text(value)));
  }
  c.svg.append(node('text', {x: c.left, y: c.top - 10}, name));
}

// Each class has a pattern as well as a colour.
function addPatterns() {
  const marks = {scales: 'M0 8L8 0M-2 2L2 -2M6 10L10 6', values: 'M2 2h2v2h-2zM6 6h2v2h-2z', activations: 'M0 2H8M0 6H8',
                 arithmetic: 'M0 0L8 8M0 8L8 0', boundaries: 'M2 0V8M6 0V8'};
  const defs = node('defs');
  for (const name of data.classes) {
    const pattern = node('pattern', {id: 'p-' + name, width: 8, height: 8, patternUnits: 'userSpaceOnUse'},
                         node('rect', {width: 8, height: 8, fill: colours[name]}));
    if (marks[name])
      pattern.append(node('path', {d: marks[name], stroke: '#fff', 'stroke-opacity': .55, fill: 'none'}));
    defs.append(pattern);
  }
  document.body.append(node('svg', {width: 0, height: 0, style: 'position:absolute', 'aria-hidden': 'true'}, defs));
}
const fill = name => `url(#p-${name})`;

// ---- Times at a context ----

const read = (kernel, context) => kernel.window ? Math.min(kernel.window, context) : context;
const classSeconds = (kernel, i, context) => kernel.seconds[i][0] + kernel.seconds[i][1] * read(kernel, context);
const kernelSeconds = (kernel, context) => data.classes.reduce((sum, _, i) => sum + classSeconds(kernel, i, context), 0);
const kernelBytes = (kernel, context) => kernel.bytes[0] + kernel.bytes[1] * read(kernel, context);
const kernelOperations = (kernel, context) => kernel.operations[0] + kernel.operations[1] * read(kernel, context);
function secondsByClass(context) {
  return data.classes.map((name, i) => data.kernels.reduce((sum, kernel) => sum + classSeconds(kernel, i, context),
                                                           name === 'boundaries' ? data.step_seconds : 0));
}
const total = list => list.reduce((a, b) => a + b, 0);

function drawContext(context) {
  const c = chart(byId('context-figure'), 680, 360, {left: 66, right: 16, top: 34, bottom: 48}, 'Time of a token over context, by class');
  const steps = 48, last = Math.max(2, data.longest);
  const contexts = Array.from({length: steps + 1}, (_, i) => 1 + (last - 1) * i / steps);
  const columns = contexts.map(secondsByClass), most = Math.max(...columns.map(total)) * 1.04;
  const x = value => c.left + (c.right - c.left) * (value - 1) / (last - 1), y = value => c.bottom - (c.bottom - c.top) * value / most;
  yAxis(c, ticks(most, 5), y, time, 'time of a token');
  const base = columns.map(() => 0);
  data.classes.forEach((name, k) => {
    const lower = contexts.map((at, i) => `${x(at)} ${y(base[i])}`);
    columns.forEach((column, i) => { base[i] += column[k]; });
    const upper = contexts.map((at, i) => `${x(at)} ${y(base[i])}`);
    c.svg.append(titled(node('path', {d: 'M' + upper.join('L') + 'L' + lower.reverse().join('L') + 'Z', fill: fill(name), stroke: '#fff', 'stroke-width': .7}), name));
  });
  xAxis(c, ticks(last, 6).map(v => v || 1), x, value => value.toFixed(0), 'context, positions');
  c.svg.append(node('line', {x1: x(context), x2: x(context), y1: c.top, y2: c.bottom, stroke: '#1a1a1a', 'stroke-width': 1.5, 'stroke-dasharray': '5 3'}));
  const right = x(context) > (c.left + c.right) / 2;
  const label = `${context}: ${time(total(secondsByClass(context)))}`;
  c.svg.append(node('text', {x: right ? c.right : Math.max(x(context), c.left + 130), y: c.top - 10, 'text-anchor': right ? 'end' : 'start', 'font-weight': 600}, label));
}

function fillClasses(context) {
  const seconds = secondsByClass(context), sum = total(seconds);
  [...byId('classes').tBodies[0].rows].forEach(row => {
    const k = data.classes.indexOf(row.dataset.name), value = k < 0 ? sum : seconds[k];
    row.cells[1].textContent = time(value);
    row.cells[1].dataset.v = value;
    row.cells[2].firstChild.textContent = (100 * value / sum).toFixed(1) + '%';
    row.cells[2].dataset.v = value / sum;
    const bar = row.querySelector('.bar');
    if (bar)
      bar.style.width = (100 * value / sum) + '%';
  });
}
function addSwatches() {
  for (const row of byId('classes').tBodies[0].rows) {
    row.dataset.name = row.cells[0].textContent;
    if (!colours[row.dataset.name])
      continue;
    const swatch = node('svg', {class: 'swatch', width: 14, height: 14});
    swatch.append(node('rect', {width: 14, height: 14, fill: fill(row.dataset.name)}));
    row.cells[0].prepend(swatch);
  }
}

function drawLayers(context) {
  const groups = [];
  let inside = false;
  for (const kernel of data.kernels) {
    inside ||= kernel.layer !== undefined;
    const name = kernel.layer !== undefined ? String(kernel.layer) : inside ? 'head' : 'embedding';
    let group = groups.find(g => g.name === name);
    if (!group)
      groups.push(group = {name, seconds: data.classes.map(() => 0)});
    data.classes.forEach((_, i) => { group.seconds[i] += classSeconds(kernel, i, context); });
  }
  const c = chart(byId('layer-figure'), 1150, 270, {left: 66, right: 10, top: 34, bottom: 48}, 'Time of each layer, by class');
  const most = Math.max(...groups.map(g => total(g.seconds))) * 1.04 || 1;
  const y = value => c.bottom - (c.bottom - c.top) * value / most, slot = (c.right - c.left) / groups.length;
  yAxis(c, ticks(most, 4), y, time, 'time of a layer');
  groups.forEach((group, i) => {
    let base = 0;
    const width = Math.min(slot * .8, 90), left = c.left + slot * (i + .5) - width / 2;
    group.seconds.forEach((seconds, k) => {
      if (seconds > 0)
        c.svg.append(titled(node('rect', {x: left, y: y(base + seconds), width, height: y(base) - y(base + seconds), fill: fill(data.classes[k])}),
                            `${group.name}: ${data.classes[k]} ${time(seconds)}`));
      base += seconds;
    });
    const every = Math.ceil(26 / slot);
    if (isNaN(group.name) ? slot > 60 : group.name % every === 0)
      c.svg.append(node('text', {class: 'soft', x: left + width / 2, y: c.bottom + 19, 'text-anchor': 'middle'}, group.name));
  });
  c.svg.append(node('line', {class: 'axis', x1: c.left, x2: c.right, y1: c.bottom, y2: c.bottom}));
  c.svg.append(node('text', {x: (c.left + c.right) / 2, y: c.bottom + 38, 'text-anchor': 'middle'}, 'layer' + (groups.length > 19 ? ' (the first bar is the embedding, the last the head)' : '')));
}

// ---- Roofline ----

function drawRoofline(context) {
  const groups = new Map();
  for (const kernel of data.kernels) {
    const operations = kernelOperations(kernel, context), bytes = kernelBytes(kernel, context), seconds = kernelSeconds(kernel, context);
    if (!operations || !bytes || !seconds)
      continue;
    // Kernels of one name and the same figures are one point.
    const key = [kernel.common, operations, bytes, seconds.toPrecision(4)].join(' ');
    const point = groups.get(key) || {label: kernel.common, kind: kernel.kind, x: operations / bytes, y: operations / seconds, count: 0};
    ++point.count;
    groups.set(key, point);
  }
  const points = [...groups.values()];
  if (!points.length)
    return;
  const bandwidth = data.target.bandwidth, peak = data.target.operations;
  const ridge = peak ? peak / bandwidth : 0;
  const lowX = Math.min(.5, ...points.map(p => p.x)) / 1.4, highX = Math.max(ridge * 3, 20, ...points.map(p => p.x * 2));
  const highY = peak ? peak * 2.2 : bandwidth * highX, lowY = Math.min(bandwidth * lowX, ...points.map(p => p.y)) / 2;
  const c = chart(byId('roofline-figure'), 1150, 420, {left: 92, right: 20, top: 34, bottom: 48}, 'Roofline of all kernels');
  const scale = (low, high, from, to) => value => from + (to - from) * Math.log(value / low) / Math.log(high / low);
  const x = scale(lowX, highX, c.left, c.right), y = scale(lowY, highY, c.bottom, c.top);
  yAxis(c, powers(lowY, highY), y, v => prefixed(v, 'OP/s'), 'operations a second');
  xAxis(c, powers(lowX, highX), x, v => String(+v.toPrecision(1)), 'operations a byte');
  const end = peak ? ridge : highX;
  c.svg.append(node('path', {d: `M${x(lowX)} ${y(bandwidth * lowX)}L${x(end)} ${y(bandwidth * end)}` + (peak ? `L${x(highX)} ${y(peak)}` : ''), stroke: '#1a1a1a', 'stroke-width': 2, fill: 'none'}));
  const middle = Math.sqrt(lowX * end), angle = Math.atan2(y(bandwidth * end) - y(bandwidth * lowX), x(end) - x(lowX)) * 180 / Math.PI;
  const at = Math.max(middle, lowX * 6);
  c.svg.append(node('text', {x: x(at), y: y(bandwidth * at) - 9, transform: `rotate(${angle} ${x(at)} ${y(bandwidth * at) - 9})`, 'text-anchor': 'middle'}, `read ceiling, ${prefixed(bandwidth, 'B/s')}`));
  if (peak) {
    c.svg.append(node('text', {x: c.right - 4, y: y(peak) - 9, 'text-anchor': 'end'}, `f16, ${prefixed(peak, 'OP/s')}`));
    c.svg.append(node('line', {class: 'axis', 'stroke-dasharray': '4 4', x1: x(ridge), x2: x(ridge), y1: y(peak), y2: c.bottom}));
    c.svg.append(node('text', {class: 'soft', x: x(ridge) + 6, y: c.bottom - 8}, `ridge, ${digits(ridge)} OP/B`));
  }
  const shapes = {product: ['#0072b2', p => `M${p.X - 5} ${p.Y - 5}h10v10h-10z`], attention: ['#d55e00', p => `M${p.X} ${p.Y - 7}l6.5 11h-13z`],
                  other: ['#5a5a5a', p => `M${p.X - 5} ${p.Y}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z`]};
  // Labels to the right of the points, one below the other where points are close.
  const labels = [];
  points.sort((a, b) => b.y - a.y);
  for (const point of points) {
    point.X = x(point.x);
    point.Y = y(point.y);
    const [colour, outline] = shapes[point.kind];
    c.svg.append(titled(node('path', {d: outline(point), fill: colour, 'fill-opacity': .75, stroke: '#fff'}),
                        `${point.label}${point.count > 1 ? ` (${point.count} times)` : ''}: ${digits(point.x)} operations a byte, ${prefixed(point.y, 'OP/s')}`));
  }
  const named = new Map();
  for (const point of points)
    if (!named.has(point.label))
      named.set(point.label, point);
  let last = -Infinity;
  const column = Math.max(...points.map(p => p.X)) + 34;
  for (const point of named.values()) {
    last = Math.max(point.Y + 4, last + 16);
    labels.push([point, last]);
  }
  const over = Math.max(0, last - (c.bottom - 6));
  for (const [point, at] of labels) {
    c.svg.append(node('line', {class: 'grid', x1: point.X + 7, y1: point.Y, x2: column - 4, y2: at - 4 - over}));
    c.svg.append(node('text', {x: column, y: at - over}, point.label));
  }
}

// ---- Frontier, fusing, measured ----

function drawFrontier() {
  const figure = byId('frontier-figure');
  if (!figure || !data.frontier)
    return;
  const points = data.frontier.filter(p => p[0] > 0), chosen = data.chosen;
  const all = chosen[0] > 0 ? [...points, chosen] : points;
  if (!all.length)
    return;
  const c = chart(figure, 1150, 360, {left: 76, right: 30, top: 34, bottom: 48}, 'Least time for each error');
  const lowX = Math.min(...all.map(p => p[0])) / 1.3, highX = Math.max(...all.map(p => p[0])) * 1.3;
  const slowest = Math.max(...all.map(p => p[1])), fastest = Math.min(...all.map(p => p[1]));
  const pad = Math.max((slowest - fastest) * .15, slowest * .01), low = Math.max(0, fastest - pad), most = slowest + pad;
  const x = value => c.left + (c.right - c.left) * Math.log(value / lowX) / Math.log(highX / lowX), y = value => c.bottom - (c.bottom - c.top) * (value - low) / (most - low);
  yAxis(c, ticks(most - low, 4).map(value => low + value), y, time, 'products and attention of a token');
  xAxis(c, powers(lowX, highX), x, v => String(+(v * 1e3).toPrecision(2)), 'predicted error, 1e-3 nats a token');
  c.svg.append(node('path', {d: 'M' + points.map(p => `${x(p[0])} ${y(p[1])}`).join('L'), stroke: '#0072b2', 'stroke-width': 2, fill: 'none'}));
  for (const p of points)
    c.svg.append(titled(node('circle', {cx: x(p[0]), cy: y(p[1]), r: 3.5, fill: '#0072b2'}), `${digits(p[0] * 1e3)}e-3 nats: ${time(p[1])}`));
  if (chosen[0] > 0) {
    const X = x(chosen[0]), Y = y(chosen[1]), right = X < (c.left + c.right) * .6;
    c.svg.append(node('circle', {cx: X, cy: Y, r: 8, fill: 'none', stroke: '#d55e00', 'stroke-width': 3}));
    c.svg.append(node('text', {x: X + (right ? 14 : -14), y: Y - 22, 'text-anchor': right ? 'start' : 'end', 'font-weight': 600}, `the plan: ${digits(chosen[0] * 1e3)}e-3 nats, ${time(chosen[1])}`));
  }
}

function drawFusing() {
  const figure = byId('fusing-figure');
  if (!figure || !data.fusing)
    return;
  const parts = data.fusing, row = 44;
  const c = chart(figure, 1150, 20 + row * parts.length, {left: 170, right: 140, top: 6, bottom: 10}, 'Bytes before and after fusing');
  const most = Math.max(...parts.map(p => p[1]));
  const width = value => (c.right - c.left) * value / most;
  parts.forEach(([name, before, after], i) => {
    const top = c.top + row * i;
    c.svg.append(node('text', {x: c.left - 10, y: top + 22, 'text-anchor': 'end'}, name));
    [[before, fill('boundaries'), 'unfused', 2], [after, '#0072b2', 'fused', 19]].forEach(([bytes, colour, what, down]) => {
      c.svg.append(titled(node('rect', {x: c.left, y: top + down, width: Math.max(1, width(bytes)), height: 15, fill: colour}), `${name}, ${what}: ${prefixed(bytes, 'B')}`));
      c.svg.append(node('text', {class: 'soft', x: c.left + width(bytes) + 7, y: top + down + 12}, `${prefixed(bytes, 'B')}${i === 0 ? ' ' + what : ''}`));
    });
  });
}

function drawMeasured() {
  const figure = byId('measured-figure'), body = byId('measured-table');
  if (!figure || !body)
    return;
  const groups = new Map();
  for (const row of body.tBodies[0].rows) {
    const label = row.cells[0].textContent, kernel = data.kernels.find(k => k.label === label);
    if (!kernel)
      continue;
    const value = i => +row.cells[i].dataset.v;
    const group = groups.get(kernel.common) || {label: kernel.common, measured: 0, predicted: 0, reading: 0, count: 0};
    group.measured += value(2);
    group.predicted += value(3);
    group.reading += value(5);
    ++group.count;
    groups.set(kernel.common, group);
  }
  const list = [...groups.values()], rowHeight = 34;
  if (!list.length)
    return;
  const c = chart(figure, 1150, 50 + rowHeight * list.length, {left: 210, right: 130, top: 34, bottom: 10}, 'Measured and predicted time of kernels');
  const most = Math.max(...list.map(g => Math.max(g.measured, g.predicted)));
  const x = value => c.left + (c.right - c.left) * value / most;
  let at = c.left;
  for (const [name, paint] of [['reading alone', '#0072b2'], ['lost', fill('boundaries')], ['predicted', '#d55e00']]) {
    c.svg.append(node('rect', {x: at, y: 6, width: name === 'predicted' ? 3 : 14, height: 14, fill: paint}));
    c.svg.append(node('text', {x: at + 20, y: 18}, name));
    at += 130;
  }
  list.forEach((group, i) => {
    const top = c.top + rowHeight * i, reading = Math.min(group.reading, group.measured);
    c.svg.append(node('text', {x: c.left - 10, y: top + 17, 'text-anchor': 'end'}, group.label + (group.count > 1 ? ` × ${group.count}` : '')));
    c.svg.append(node('rect', {x: c.left, y: top + 3, width: x(reading) - c.left, height: 20, fill: '#0072b2'}));
    c.svg.append(node('rect', {x: x(reading), y: top + 3, width: x(group.measured) - x(reading), height: 20, fill: fill('boundaries')}));
    c.svg.append(node('rect', {x: x(group.predicted) - 1.5, y: top - 1, width: 3, height: 28, fill: '#d55e00'}));
    c.svg.append(node('text', {class: 'soft', x: Math.max(x(group.measured), x(group.predicted)) + 8, y: top + 17}, `${time(group.measured)}`));
  });
}

// ---- Tables and stages ----

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'descending' || !head.classList.contains('n') && head.getAttribute('aria-sort') !== 'ascending';
      for (const other of table.tHead.rows[0].cells)
        other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', down ? 'ascending' : 'descending');
      const key = row => row.cells[column].dataset.v;
      const rows = [...table.tBodies[0].rows].sort((a, b) =>
        key(a) !== undefined && key(b) !== undefined ? key(a) - key(b) : a.cells[column].textContent.localeCompare(b.cells[column].textContent, 'en', {numeric: true}));
      table.tBodies[0].append(...(down ? rows : rows.reverse()));
    });
  });
}

function linkStages() {
  const lines = [...document.querySelectorAll('.stage pre[data-o]')], bar = byId('origins');
  if (!bar)
    return;
  const originsOf = line => line.dataset.o.split(' ');
  const names = [...new Set(lines.flatMap(originsOf))];
  let kept = null;
  const mark = origins => {
    for (const line of lines)
      line.classList.toggle('on', !!origins && originsOf(line).some(name => origins.includes(name)));
    for (const button of bar.children)
      button.classList.toggle('on', !!origins && origins.includes(button.textContent));
  };
  // Other stages are scrolled to where the first marked line is.
  const reveal = from => {
    for (const stage of document.querySelectorAll('.stage')) {
      const first = stage.querySelector('pre.on');
      if (first && stage !== from)
        stage.scrollTop = first.offsetTop - stage.offsetTop - 60;
    }
  };
  const link = (element, origins, stage) => {
    element.addEventListener('mouseenter', () => mark(origins()));
    element.addEventListener('mouseleave', () => mark(kept));
    element.addEventListener('click', () => { kept = kept === null ? origins() : null; mark(kept || origins()); if (kept) reveal(stage); });
  };
  for (const name of names) {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = name;
    link(button, () => [name], null);
    bar.append(button);
  }
  for (const line of lines)
    link(line, () => originsOf(line), line.closest('.stage'));
}

function drawAll(context) {
  byId('context-value').textContent = context;
  drawContext(context);
  fillClasses(context);
  drawLayers(context);
  drawRoofline(context);
}
addPatterns();
addSwatches();
drawAll(data.context);
drawFrontier();
drawFusing();
drawMeasured();
byId('context').addEventListener('input', event => drawAll(+event.target.value));
document.querySelectorAll('table').forEach(makeSortable);
linkStages();
document.body.dataset.drawn = document.querySelectorAll('figure svg').length;
})();
