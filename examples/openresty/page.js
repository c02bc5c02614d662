"use strict";
// One WebSocket is one run: see gateway.lua. What programs say is only ever put in as text.

const $ = id => document.getElementById(id);
const edited = new Map(); // language -> what somebody made of its example
let language = null, socket = null, began = 0;

// ---------------------------------------------------------------- the editor

function number() {
  const lines = $("code").value.split("\n").length;
  $("numbers").textContent = Array.from({ length: lines }, (_, i) => i + 1).join("\n");
  $("numbers").scrollTop = $("code").scrollTop;
}

async function example() {
  const wanted = language;
  const answer = await fetch("samples/" + wanted);
  const text = answer.ok ? (await answer.text()).trimEnd() : "";
  if (wanted !== language) return;
  edited.delete(language);
  $("code").value = text;
  $("code").scrollTop = 0;
  $("example").disabled = true;
  number();
}

function choose() {
  language = $("language").value;
  history.replaceState(null, "", "#" + language);
  if (!edited.has(language)) return example();
  $("code").value = edited.get(language);
  $("example").disabled = false;
  number();
}

$("language").onchange = choose;
$("example").onclick = example;
$("code").onscroll = () => { $("numbers").scrollTop = $("code").scrollTop; };
$("code").oninput = () => {
  edited.set(language, $("code").value);
  $("example").disabled = false;
  number();
};
$("code").onkeydown = event => {
  if (event.key !== "Tab" || event.shiftKey || event.ctrlKey || event.altKey) return;
  event.preventDefault(); // Shift-Tab leaves
  document.execCommand("insertText", false, language === "go" ? "\t" : "    ");
};

// ---------------------------------------------------------------- the screen

const pending = []; // of [kind, text], until the next frame is painted

function show(kind, text) {
  if (pending.length === 0) requestAnimationFrame(paint);
  pending.push([kind, text]);
}

// Does something that may push the last line out of sight, which stays in sight if it was.
function following(change) {
  const screen = $("screen");
  const follow = screen.scrollTop + screen.clientHeight > screen.scrollHeight - 40;
  change(screen);
  if (follow) screen.scrollTop = screen.scrollHeight;
}

const paint = () => following(screen => {
  for (const [kind, text] of pending.splice(0)) {
    let last = screen.lastChild;
    if (last?.className !== kind) {
      last = document.createElement("span");
      last.className = kind;
      last.append("");
      screen.append(last);
    }
    last.firstChild.appendData(text);
  }
});

function picture({ name, mime, data }) {
  const figure = document.createElement("figure"), image = new Image();
  const caption = document.createElement("figcaption"), link = document.createElement("a");
  link.href = image.src = `data:${mime};base64,${data}`;
  link.download = link.textContent = image.alt = name;
  caption.append(link);
  figure.append(image, caption);
  image.onload = () => following(() => $("pictures").append(figure));
}

function state(text, kind = "") {
  $("state").textContent = text;
  $("state").className = kind;
}

// ---------------------------------------------------------------- a run

const seconds = () => ((performance.now() - began) / 1000).toFixed(1) + " s";

setInterval(() => {
  if (socket) state("running, " + seconds(), "running");
}, 100);

function verdict({ ok, status, exit_code, signal, limit, stage, error, message, duration }) {
  if (error === "cancelled") return "stopped";
  if (error) return message;
  const how = {
    exited: `exited with ${exit_code}`,
    signaled: `ended by SIG${signal}`,
    timed_out: "ran out of time",
    output_limit: "ended: too much output",
    resource_limit: `ended: over its limit of ${limit}`,
  }[status];
  return !ok && stage === "compile" ? "did not compile" : `${how}, after ${duration.toFixed(2)} s`;
}

function over(text, { ok, error } = {}) {
  socket = null;
  for (const id of ["stop", "line", "send", "eof"]) $(id).disabled = true;
  $("run").disabled = false;
  state(text, error === "cancelled" ? "" : ok ? "good" : "bad");
}

function run() {
  if (socket || $("run").disabled) return;
  $("screen").replaceChildren();
  $("pictures").replaceChildren();
  pending.length = 0;
  began = performance.now();
  const mine = new WebSocket(location.origin.replace(/^http/, "ws") + "/session");
  const request = { type: "run", language, code: $("code").value };
  let open = false;
  socket = mine;
  $("run").disabled = true;
  mine.onopen = () => {
    open = true;
    mine.send(JSON.stringify(request));
    for (const id of ["stop", "line", "send", "eof"]) $(id).disabled = false;
    if (!matchMedia("(pointer: coarse)").matches) $("line").focus(); // not on phones: keyboards
  };
  mine.onmessage = event => {
    const message = JSON.parse(event.data);
    if (message.type === "file") picture(message);
    else if (message.type === "end") over(verdict(message), message);
    else show(message.type, message.data);
  };
  mine.onclose = () => {
    if (socket !== mine) return;
    over(open ? "the connection was lost" : "the gateway is busy, or gone: try again in a moment");
  };
}

const tell = message => socket?.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));

function end() {
  if ($("eof").disabled) return;
  tell({ type: "eof" });
  for (const id of ["line", "send", "eof"]) $(id).disabled = true;
}

$("run").onclick = run;
$("stop").onclick = () => tell({ type: "stop" });
$("eof").onclick = end;
$("say").onsubmit = event => {
  event.preventDefault();
  const text = $("line").value + "\n";
  $("line").value = "";
  tell({ type: "stdin", data: text });
  show("typed", text);
};
document.onkeydown = event => {
  if (event.ctrlKey && event.key === "Enter") {
    event.preventDefault();
    run();
  } else if (event.ctrlKey && event.key === "d" && event.target === $("line")) {
    event.preventDefault();
    end();
  }
};

// ---------------------------------------------------------------- the beginning

async function start() {
  const answer = await fetch("languages");
  const list = await answer.json();
  if (!answer.ok) throw new Error(list.message);
  for (const { name, version } of list) {
    $("language").append(new Option([name, version?.match(/^\d+\.\d+/)?.[0]].join(" "), name));
  }
  const wanted = location.hash.slice(1);
  if (list.some(({ name }) => name === wanted)) $("language").value = wanted;
  $("language").disabled = $("run").disabled = false;
  await choose();
}

start().catch(error => state(error.message, "bad"));
