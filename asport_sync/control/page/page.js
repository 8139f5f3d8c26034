// The status page: asks for v1/status every two seconds, and shows it. Texts from outside become text nodes only.
"use strict";

const INTERVAL = 2000; // milliseconds between two requests
const MAX_POINTS = 150; // five minutes
const MAX_SERIES = 6; // as many as there are colours
const MAX_ROWS = 200;
const RECENT = 60; // seconds for which the latest error of a public tunnel is shown
const WIDTH = 600; // of a chart, in its own units
const HEIGHT = 140;
const NONE = "–";
const SVG = "http://www.w3.org/2000/svg";

const histories = new Map(); // tunnel id -> {label, points: [{time, received, sent, rtt, connections}]}
let before = null; // the latest status
let lastAnswer = 0; // when it came, in milliseconds since 1970

// --- numbers as text ---

function scaled(value, factor, units) {
  let unit = 0;
  while (value >= factor && unit < units.length - 1) {
    value /= factor;
    unit += 1;
  }
  const digits = value >= 100 || Number.isInteger(value) ? 0 : 1;
  return `${value.toFixed(digits)} ${units[unit]}`;
}

function size(value) {
  return value === null ? NONE : scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
}

function bitRate(value) {
  return value === null ? NONE : scaled(value, 1000, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"]);
}

function milliseconds(value) {
  return value === null ? NONE : `${(1000 * value).toFixed(1)} ms`;
}

function count(value) {
  return value === null ? NONE : value.toLocaleString("en");
}

function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [days, hours] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24];
  const minutes = Math.floor(whole / 60) % 60;
  if (days) return `${days}d ${hours}h`;
  if (hours) return `${hours}h ${minutes}m`;
  return minutes ? `${minutes}m ${whole % 60}s` : `${whole}s`;
}

// --- figures ---

function payload(row, way) {
  const counted = row[`payload_${way}`];
  return counted === null ? row[`bytes_${way}`] : counted;
}

function rate(row, way, status) {
  const old = before && before.pid === status.pid && before.tunnels.find((each) => each.id === row.id);
  const seconds = before ? status.time - before.time : 0;
  if (!old || seconds <= 0) return null;
  const moved = payload(row, way) - payload(old, way);
  return moved < 0 ? null : (8 * moved) / seconds; // negative: the tunnel has another connection now
}

function label(row) {
  if (row.balance) return `${row.public} (${row.peer})`; // others have the same port
  return row.name || row.public || row.user_name || row.user || row.id;
}

function remember(status) {
  const present = new Set();
  for (const row of status.tunnels) {
    present.add(row.id);
    const kept = histories.get(row.id) || { points: [] };
    kept.label = label(row);
    kept.points.push({
      time: status.time,
      received: rate(row, "received", status),
      sent: rate(row, "sent", status),
      rtt: row.rtt,
      connections: row.connections,
    });
    if (kept.points.length > MAX_POINTS) kept.points.shift();
    histories.set(row.id, kept);
  }
  for (const id of [...histories.keys()]) {
    if (!present.has(id)) histories.delete(id);
  }
}

// --- the table ---

const COLUMNS = [
  ["Name", (row) => row.name || NONE, (status) => status.tunnels.some((row) => row.name)],
  ["User", (row) => row.user_name || (row.user || NONE).slice(0, 8)], // the whole UUID is the title
  ["Public address", (row) => row.public || NONE],
  ["Local service", (row) => row.local || NONE, (status) => status.side === "client"],
  ["Client", (row) => row.peer || NONE, (status) => status.side === "server"],
  ["Balance", (row) => row.balance || NONE, (status) => status.tunnels.some((row) => row.balance)],
  ["State", (row) => row.state],
  ["Since", (row) => (row.since === null ? NONE : duration(Date.now() / 1000 - row.since))],
  ["Connections", (row) => count(row.connections), null, "number"],
  ["In all", (row) => count(row.connections_total), null, "number"],
  ["UDP", (row) => count(row.associations), null, "number"],
  ["Received", (row) => size(payload(row, "received")), null, "number"],
  ["Sent", (row) => size(payload(row, "sent")), null, "number"],
  ["Receiving", (row, status) => bitRate(rate(row, "received", status)), null, "number"],
  ["Sending", (row, status) => bitRate(rate(row, "sent", status)), null, "number"],
  ["RTT", (row) => milliseconds(row.rtt), null, "number"],
  ["Lost", (row) => (row.packets_sent ? `${((100 * row.packets_lost) / row.packets_sent).toFixed(2)} %` : NONE), null, "number"],
  ["Window", (row) => size(row.congestion_window), null, "number"],
  ["MTU", (row) => count(row.path_payload), null, "number"],
];

function isRecent(moment) {
  return moment !== null && Date.now() / 1000 - moment < RECENT;
}

function made(name, text, attributes = {}) {
  const element = document.createElement(name);
  if (text !== null) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) {
    if (value) element.setAttribute(key, value);
  }
  return element;
}

function replace(id, children) {
  document.getElementById(id).replaceChildren(...children);
}

function showTable(status) {
  const columns = COLUMNS.filter(([, , wanted]) => !wanted || wanted(status));
  const heads = columns.map(([name, , , kind]) =>
    made("th", name, { scope: "col", role: "columnheader", class: kind })
  );
  replace("columns", heads);
  const rows = status.tunnels.slice(0, MAX_ROWS).map((row) => {
    const line = made("tr", null, { role: "row" });
    for (const [name, value, , kind] of columns) {
      const title = name === "User" ? row.user : null;
      const cell = made("td", null, { role: "cell", "data-label": name, class: kind, title });
      const words = made("span", value(row, status), { class: name === "State" ? `state-${row.state}` : null });
      cell.append(words);
      if (name === "State" && row.error && (row.state !== "public" || isRecent(row.error_at))) {
        words.append(made("span", row.error, { class: "error" }));
      }
      line.append(cell);
    }
    return line;
  });
  replace("rows", rows);
  document.getElementById("empty").hidden = status.tunnels.length > 0;
  const more = document.getElementById("more");
  more.hidden = status.tunnels.length <= MAX_ROWS;
  more.textContent = `${status.tunnels.length - MAX_ROWS} more are not shown.`;
}

// --- the charts ---

const CHARTS = [
  { title: "Throughput (dashed: sending)", lines: ["received", "sent"], text: bitRate },
  { title: "Round-trip time", lines: ["rtt"], text: milliseconds },
  { title: "Open connections", lines: ["connections"], text: count },
];

function drawn(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function path(points, line, newest, largest) {
  let text = "";
  let isGap = true;
  for (const point of points) {
    const value = point[line];
    if (value === null) {
      isGap = true;
      continue;
    }
    const x = WIDTH * (1 - ((newest - point.time) * 1000) / (INTERVAL * MAX_POINTS));
    const y = HEIGHT - (largest ? (value / largest) * (HEIGHT - 4) : 0);
    text += `${isGap ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    isGap = false;
  }
  return text;
}

function figure(chart, series, newest) {
  const values = series.flatMap((each) => each.points.flatMap((point) => chart.lines.map((line) => point[line])));
  const largest = Math.max(0, ...values.filter((value) => value !== null));
  const latest = series.map((each) => {
    const point = each.points[each.points.length - 1];
    return `${each.label}: ${chart.lines.map((line) => chart.text(point[line])).join(" and ")}`;
  });
  const image = drawn("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": `${chart.title}. Now: ${latest.join("; ") || "no tunnels"}`,
  });
  image.append(drawn("line", { class: "axis", x1: 0, y1: HEIGHT - 0.5, x2: WIDTH, y2: HEIGHT - 0.5 }));
  image.append(drawn("line", { class: "axis", x1: 0, y1: 4, x2: WIDTH, y2: 4 }));
  series.forEach((each, number) => {
    chart.lines.forEach((line, index) => {
      const style = `series series-${number}${index ? " dashed" : ""}`;
      image.append(drawn("path", { class: style, d: path(each.points, line, newest, largest) }));
    });
  });
  const caption = made("figcaption", null);
  caption.append(made("span", chart.title), made("span", `up to ${chart.text(largest)}`, { class: "largest" }));
  const whole = made("figure", null);
  whole.append(caption, image);
  return whole;
}

function showCharts(status) {
  const busiest = [...status.tunnels]
    .sort((one, other) => payload(other, "received") + payload(other, "sent") - payload(one, "received") - payload(one, "sent"))
    .slice(0, MAX_SERIES)
    .map((row) => row.id);
  // In the order in which they have appeared, so that they keep their colours.
  const series = [...histories].filter(([id]) => busiest.includes(id)).map(([, kept]) => kept);
  const marks = series.map((each, number) => {
    const mark = made("li", null, { class: `mark series-${number}` });
    mark.append(made("span", each.label, { class: "words" }));
    return mark;
  });
  if (status.tunnels.length > series.length) {
    marks.push(made("li", `and ${status.tunnels.length - series.length} with less traffic, not in the charts`));
  }
  replace("legend", marks);
  replace("charts", CHARTS.map((chart) => figure(chart, series, status.time)));
}

// --- everything ---

function show(status) {
  const uptime = status.uptime === null ? "" : `, up ${duration(status.uptime)}`;
  document.title = `asport-sync ${status.side}`;
  document.getElementById("title").textContent = `asport-sync ${status.side} ${status.version}`;
  const waiting = status.unauthenticated ? `, ${count(status.unauthenticated)} unauthenticated clients` : "";
  document.getElementById("summary").textContent = `${status.summary} (process ${status.pid}${uptime}${waiting})`;
  remember(status);
  showTable(status);
  showCharts(status);
  const drops = Object.entries(status.drops);
  replace("drops", drops.flatMap(([name, value]) => [made("dt", name), made("dd", count(value))]));
  document.getElementById("no-drops").hidden = drops.length > 0;
  before = status;
}

// Says only changes aloud: the text is the same after each answer.
function fresh(text, isStale) {
  const place = document.getElementById("freshness");
  place.classList.toggle("stale", isStale);
  if (place.textContent !== text) place.textContent = text;
}

async function update() {
  try {
    const answer = await fetch("v1/status", { cache: "no-store", signal: AbortSignal.timeout(10000) });
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    show(await answer.json());
    lastAnswer = Date.now();
    fresh("Updated every two seconds", false);
  } catch (problem) {
    const since = lastAnswer ? ` since ${new Date(lastAnswer).toLocaleTimeString()}` : "";
    fresh(`No answer${since}: ${problem.message}`, true);
  }
  window.setTimeout(next, INTERVAL);
}

// A page in the background asks for nothing.
function next() {
  if (document.hidden) {
    document.addEventListener("visibilitychange", next, { once: true });
  } else {
    update();
  }
}

next();
