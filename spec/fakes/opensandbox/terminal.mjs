// Holds the fake's terminals against another's WebSocket, undici's. Prints as client.mjs does.
//
//     node terminal.mjs MODULE URL HEADERS
//
// URL is where the daemon is, without an end slash; HEADERS a JSON object of what it wants.
import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";

const [module, url, wanted] = process.argv.slice(2);
const { WebSocket } = (await import(pathToFileURL(module))).default;
const headers = JSON.parse(wanted);

async function call(method, path, value) {
  const body = value && JSON.stringify(value);
  const type = value && { "content-type": "application/json" };
  const response = await fetch(url + path, { method, headers: { ...headers, ...type }, body });
  const text = await response.text();
  return [response.status, text && JSON.parse(text)];
}

// A client of one terminal: what came is in `frames`, as [channel or "text" or "close", value].
function connect(id, query) {
  const socket = new WebSocket(`${url.replace("http", "ws")}/pty/${id}/ws?${query}`, { headers });
  socket.binaryType = "arraybuffer";
  const frames = [];
  const waiting = [];
  const add = (frame) => {
    frames.push(frame);
    waiting.splice(0).forEach((check) => check());
  };
  socket.addEventListener("message", ({ data }) => {
    if (typeof data === "string") return add(["text", JSON.parse(data)]);
    const bytes = Buffer.from(data);
    return add([bytes[0], bytes.subarray(1)]);
  });
  socket.addEventListener("close", ({ code, reason }) => add(["close", { code, reason }]));
  socket.addEventListener("error", () => add(["error"]));
  const until = (test) => new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`only ${JSON.stringify(frames)} came`)), 10000);
    const check = () => {
      const found = test(frames);
      if (!found) return waiting.push(check);
      clearTimeout(late);
      return resolve(found);
    };
    check();
  });
  const text = (type) => until((all) => all.find(([kind, value]) => kind === "text"
    && value.type === type));
  const output = (channel) => Buffer.concat(frames.filter(([kind]) => kind === channel)
    .map(([, bytes]) => bytes)).toString();
  return {
    socket, frames, until, text, output,
    shows: (pattern, channel = 1) => until(() => output(channel).match(pattern)),
    closed: () => until((all) => all.find(([kind]) => kind === "close")),
    type: (input) => socket.send(Buffer.concat([Buffer.of(0), Buffer.from(input)])),
    tell: (value) => socket.send(JSON.stringify(value)),
  };
}

const steps = {
  async "a terminal: input, size, ping, an unknown frame"() {
    const [status, { session_id: id }] = await call("POST", "/pty", {});
    assert.equal(status, 201);
    const client = connect(id, "pty=1");
    const [, connected] = await client.text("connected");
    assert.deepEqual(connected, { type: "connected", session_id: id, mode: "pty" });
    client.tell({ type: "resize", cols: 100, rows: 30 });
    client.tell({ type: "ping" });
    await client.text("pong");
    client.type("stty size; test -t 0 && echo ter''minal\n");
    await client.shows(/30 100\r\nterminal\r\n/);
    client.tell({ type: "bogus" });
    assert.equal((await client.text("error"))[1].code, "INVALID_FRAME");
    client.type("exit 5\n");
    assert.equal((await client.text("exit"))[1].exit_code, 5);
    assert.deepEqual((await client.closed())[1], { code: 1000, reason: "process exited" });
    assert.equal((await call("GET", `/pty/${id}`))[1].running, false);
    assert.equal((await call("DELETE", `/pty/${id}`))[0], 200);
    assert.equal((await call("DELETE", `/pty/${id}`))[1].code, "CONTEXT_NOT_FOUND");
  },

  async "pipes: two channels, input as text, a signal"() {
    const [, { session_id: id }] = await call("POST", "/pty", {
      command: "trap 'echo got; exit 3' TERM; read -r line; echo $line; echo err >&2; "
        + "while :; do sleep 0.05; done",
    });
    const client = connect(id, "pty=0");
    assert.equal((await client.text("connected"))[1].mode, "pipe");
    client.tell({ type: "stdin", data: "typed\n" });
    await client.shows(/^typed\n/);
    await client.shows(/^err\n$/, 2);
    client.tell({ type: "signal", signal: "SIGTERM" });
    assert.equal((await client.text("exit"))[1].exit_code, 3);
    assert.equal(client.output(1), "typed\ngot\n");
  },

  async "one client at a time: refused, taken over, what was missed"() {
    const [, { session_id: id }] = await call("POST", "/pty", { cwd: "/tmp" });
    const first = connect(id, "pty=0");
    await first.text("connected");
    first.type("echo one; pwd\n");
    await first.shows(/one\n\/tmp\n/);
    const second = connect(id, "pty=0");
    await second.until((all) => all.length > 0);
    assert.equal(second.frames[0][0], "error");
    const third = connect(id, "pty=0&takeover=1&since=4");
    assert.deepEqual((await first.closed())[1], { code: 4001, reason: "TAKEN_OVER" });
    await third.text("connected");
    const [kind, replay] = third.frames[0];
    assert.equal(kind, 3);
    assert.equal(replay.readBigUInt64BE(0), 4n);
    assert.equal(replay.subarray(8).toString(), "/tmp\n");
    third.type("echo again\n");
    await third.shows(/again\n/);
    third.socket.close();
    await call("DELETE", `/pty/${id}`);
  },
};

for (const [name, fn] of Object.entries(steps)) {
  try {
    await fn();
    console.log(`ok ${name}`);
  } catch (error) {
    console.log(`not ok ${name}: ${error.stack}`);
    process.exitCode = 1;
    break;
  }
}
process.exit();
