// Drives the fake with the official client, step by step. Each step prints "ok NAME"; the first
// that is not as it must be prints what it was and ends with status 1.
//
//     node client.mjs MODULE DOMAIN KEY direct|proxy
//
// MODULE is the client's entry file: it is not in this directory, because nothing fetched is.
import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";

const [module, domain, apiKey, way] = process.argv.slice(2);
const { Sandbox, SandboxManager, ConnectionConfig } = await import(pathToFileURL(module));

const connectionConfig = new ConnectionConfig({
  domain, apiKey, useServerProxy: way === "proxy", requestTimeoutSeconds: 20,
});
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const texts = (messages) => messages.map((message) => message.text);
let box;
const steps = [];
const step = (name, fn) => steps.push([name, fn]);

async function until(fn) {
  for (let i = 0; i < 500; i++) {
    const value = await fn();
    if (value) return value;
    await pause(20);
  }
  throw new Error("it did not come");
}

async function rejects(promise, status, code) {
  await assert.rejects(promise, (error) => {
    assert.equal(error.statusCode, status, error.stack + (error.cause?.stack ?? ""));
    assert.equal(error.error.code, code);
    return true;
  });
}

step("create", async () => {
  box = await Sandbox.create({
    connectionConfig, image: "debian:12", timeoutSeconds: 600, env: { GREETING: "hello" },
    metadata: { project: "moonsand" }, resource: { cpu: "500m", memory: "512Mi" },
    networkPolicy: { defaultAction: "deny", egress: [{ action: "allow", target: "a.example" }] },
  });
  const info = await box.getInfo();
  assert.equal(info.status.state, "Running");
  assert.equal(info.image.uri, "debian:12");
  assert.ok(info.expiresAt > info.createdAt);
});

step("a wrong key", async () => {
  const wrong = SandboxManager.create({ connectionConfig: { domain, apiKey: "wrong" } });
  await rejects(wrong.listSandboxInfos(), 401, "INVALID_API_KEY");
  await wrong.close();
});

step("run", async () => {
  const result = await box.commands.run("echo a; echo; printf b; echo e >&2; echo $GREETING $X",
    { workingDirectory: "/tmp", envs: { X: "y" }, timeoutSeconds: 30 });
  assert.deepEqual(texts(result.logs.stdout), ["a", "\n", "bhello y"]);
  assert.deepEqual(texts(result.logs.stderr), ["e"]);
  assert.equal(result.exitCode, 0);
  assert.match(result.id, /^[0-9a-f]{32}$/);
});

step("run with an exit code, a signal, a time limit", async () => {
  assert.equal((await box.commands.run("exit 3")).exitCode, 3);
  const killed = await box.commands.run("kill -9 $$");
  assert.equal(killed.exitCode, -1);
  assert.deepEqual(killed.error.traceback, ["signal: killed"]);
  assert.equal((await box.commands.run("sleep 9", { timeoutSeconds: 0.3 })).exitCode, -1);
});

step("run, refused", async () => {
  await rejects(box.commands.run("true", { workingDirectory: "/nope" }), 400,
    "INVALID_REQUEST_BODY");
});

step("stream", async () => {
  const seen = [];
  // the second line comes only when the first was heard
  const command = "echo 1; for i in $(seq 400); do test -e /tmp/heard && echo 2 && break; "
    + "sleep 0.05; done";
  for await (const event of box.commands.runStream(command)) {
    if (event.type !== "stdout") continue;
    seen.push(event.text);
    if (event.text === "1") await box.files.createDirectories([{ path: "/tmp/heard", mode: 755 }]);
  }
  assert.deepEqual(seen, ["1", "2"]);
});

step("background, status, logs, interrupt", async () => {
  const { id } = await box.commands.run("echo out; echo err >&2; sleep 0.3; echo late; exit 4",
    { background: true });
  const status = await until(async () => {
    const now = await box.commands.getCommandStatus(id);
    return !now.running && now;
  });
  assert.equal(status.exitCode, 4);
  assert.ok(status.finishedAt - status.startedAt >= 300);
  const all = await box.commands.getBackgroundCommandLogs(id);
  assert.deepEqual(all, { content: "out\nerr\nlate\n", cursor: 13 });
  const rest = await box.commands.getBackgroundCommandLogs(id, 8);
  assert.deepEqual(rest, { content: "late\n", cursor: 13 });
  const other = await box.commands.run("sleep 60", { background: true });
  await box.commands.interrupt(other.id);
  const ended = await until(async () => {
    const now = await box.commands.getCommandStatus(other.id);
    return !now.running && now;
  });
  assert.equal(ended.error, "signal: terminated");
  await rejects(box.commands.getCommandStatus("none"), 404, "INVALID_REQUEST_BODY");
  await rejects(box.commands.interrupt(other.id), 500, "RUNTIME_ERROR");
});

step("sessions", async () => {
  const id = await box.commands.createSession({ workingDirectory: "/workspace/s" });
  await box.commands.runInSession(id, "export KEPT='a b'; cd /tmp; lost() { :; }");
  const next = await box.commands.runInSession(id, "echo $KEPT; pwd; lost");
  assert.deepEqual(texts(next.logs.stdout).slice(0, 2), ["a b", "/tmp"]);
  assert.equal(next.exitCode, 127);
  const late = await box.commands.runInSession(id, "exec sleep 9", { timeoutSeconds: 0.2 });
  assert.equal(late.exitCode, null); // the error object in the stream: this client drops it
  await box.commands.deleteSession(id);
  await rejects(box.commands.deleteSession(id), 404, "CONTEXT_NOT_FOUND");
});

step("files", async () => {
  const { files } = box;
  const bytes = Uint8Array.from({ length: 70000 }, (_, i) => (i * 7) % 256);
  async function* parts() {
    for (let i = 0; i < bytes.length; i += 9999) yield bytes.subarray(i, i + 9999);
  }
  await files.createDirectories([{ path: "/workspace/d/e", mode: 750 }]);
  await files.writeFiles([
    { path: "/workspace/d/text.txt", data: "one\ntwo\nthree\n", mode: 640 },
    { path: "/workspace/d/e/é.bin", data: bytes },
    { path: "/workspace/d/e/stream.bin", data: parts() },
  ]);
  assert.equal(await files.readFile("/workspace/d/text.txt"), "one\ntwo\nthree\n");
  assert.equal(await files.readFile("/workspace/d/text.txt", { range: "bytes=4-6" }), "two");
  const lines = { offset: 2, limit: 2 };
  assert.equal(await files.readFile("/workspace/d/text.txt", lines), "two\nthree");
  assert.deepEqual(await files.readBytes("/workspace/d/e/é.bin"), bytes);
  const streamed = [];
  for await (const part of files.readBytesStream("/workspace/d/e/stream.bin")) streamed.push(part);
  assert.deepEqual(Uint8Array.from(Buffer.concat(streamed)), bytes);

  const info = (await files.getFileInfo(["/workspace/d/text.txt"]))["/workspace/d/text.txt"];
  assert.deepEqual([info.size, info.mode, info.type, info.owner], [14, 640, "file", "root"]);
  const found = await files.search({ path: "/workspace", pattern: "*.bin" });
  assert.deepEqual(found.map(({ path }) => path),
    ["/workspace/d/e/stream.bin", "/workspace/d/e/é.bin"]);
  const listed = await files.listDirectory({ path: "/workspace/d", depth: 1 });
  assert.deepEqual(listed.map(({ path, type }) => [path, type]),
    [["/workspace/d/e", "directory"], ["/workspace/d/text.txt", "file"]]);

  await files.setPermissions([{ path: "/workspace/d/text.txt", mode: 600 }]);
  await files.moveFiles([{ src: "/workspace/d/text.txt", dest: "/workspace/n/ew/t.txt" }]);
  const replaced = await files.replaceContentsDetailed(
    [{ path: "/workspace/n/ew/t.txt", oldContent: "t", newContent: "T" }]);
  assert.deepEqual(replaced, [{ path: "/workspace/n/ew/t.txt", replacedCount: 2 }]);
  const shown = await box.commands.run("cd /workspace/n/ew; stat -c %a t.txt; cat t.txt");
  assert.deepEqual(texts(shown.logs.stdout), ["600", "one", "Two", "Three"]);
  await files.deleteFiles(["/workspace/n/ew/t.txt"]);
  await files.deleteDirectories(["/workspace/d"]);
  await rejects(files.getFileInfo(["/workspace/d"]), 404, "FILE_NOT_FOUND");
});

step("metrics", async () => {
  const metrics = await box.getMetrics();
  assert.ok(metrics.cpuCount >= 1 && metrics.memoryTotalMiB > metrics.memoryUsedMiB);
  assert.ok(Math.abs(metrics.timestamp - Date.now()) < 60000);
});

step("isolated sessions", async () => {
  const can = await box.isolation.capabilities();
  assert.equal(can.available, true);
  const session = await box.isolation.create({ workspace: { path: "/workspace" } });
  const first = await session.run("kept=1; cd /tmp; echo $X; false", { envs: { X: "y" } });
  assert.deepEqual([texts(first.logs.stdout), first.exitCode], [["y"], 1]);
  const next = await session.run("echo $kept; pwd");
  assert.deepEqual(texts(next.logs.stdout), ["1", "/tmp"]);
  await session.files.writeFiles([{ path: "/workspace/in.txt", data: "inside" }]);
  assert.equal(await session.files.readFile("/workspace/in.txt"), "inside");
  assert.equal((await box.isolation.list()).length, 1);
  await session.delete();
});

step("egress policy", async () => {
  await box.patchEgressRules([{ action: "deny", target: "b.example" }]);
  const policy = await box.getEgressPolicy();
  assert.equal(policy.defaultAction, "deny");
  assert.deepEqual(policy.egress.map(({ target }) => target), ["b.example", "a.example"]);
  await box.deleteEgressRules(["a.example"]);
  assert.equal((await box.getEgressPolicy()).egress.length, 1);
});

step("list, metadata, renew", async () => {
  const manager = SandboxManager.create({ connectionConfig });
  const filter = { states: ["Running"], metadata: { project: "moonsand" }, pageSize: 10 };
  const list = await manager.listSandboxInfos(filter);
  assert.deepEqual(list.items.map(({ id }) => id), [box.id]);
  assert.equal(list.pagination.totalItems, 1);
  const patched = await box.patchMetadata({ project: null, team: "a" });
  assert.deepEqual(patched.metadata, { team: "a" });
  assert.equal((await manager.listSandboxInfos(filter)).items.length, 0);
  const { expiresAt } = await box.renew(1800);
  assert.ok(Math.abs(expiresAt - Date.now() - 1800000) < 60000);
  await manager.close();
});

step("pause and resume", async () => {
  const { id } = await box.commands.run("while sleep 0.02; do echo x; done", { background: true });
  await box.pause();
  assert.equal((await box.getInfo()).status.state, "Paused");
  await rejects(box.pause(), 409, "DOCKER::SANDBOX_NOT_RUNNING");
  const resumed = await box.resume();
  const { cursor } = await resumed.commands.getBackgroundCommandLogs(id);
  await until(async () => (await resumed.commands.getBackgroundCommandLogs(id)).cursor > cursor);
  box = resumed; // it shares the first one's connections
});

step("snapshots", async () => {
  const manager = SandboxManager.create({ connectionConfig });
  await box.files.writeFiles([{ path: "/workspace/kept.txt", data: "kept" }]);
  const { id, status } = await manager.createSnapshot(box.id, { name: "one" });
  assert.equal(status.state, "Creating");
  await until(async () => (await manager.getSnapshot(id)).status.state === "Ready");
  const other = await Sandbox.create({ connectionConfig, snapshotId: id });
  assert.equal(await other.files.readFile("/workspace/kept.txt"), "kept");
  await other.kill();
  await other.close();
  await manager.deleteSnapshot(id);
  await rejects(manager.getSnapshot(id), 404, "SNAPSHOT::NOT_FOUND");
  await manager.close();
});

step("kill", async () => {
  await box.kill();
  await rejects(box.getInfo(), 404, "DOCKER::SANDBOX_NOT_FOUND");
  await box.close();
});

for (const [name, fn] of steps) {
  try {
    await fn();
    console.log(`ok ${name}`);
  } catch (error) {
    console.log(`not ok ${name}: ${error.stack}\n${JSON.stringify(error.rawBody ?? null)}`);
    process.exitCode = 1;
    break;
  }
}
