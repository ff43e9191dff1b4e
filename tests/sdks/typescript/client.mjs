// Takes MCP steps with the official TypeScript SDK and reports them as JSON: see ../README.md.
// The first line of the SDK speaks the legacy revisions, the second speaks 2026-07-28.

import { text } from "node:stream/consumers";

const info = { name: "typescript-sdk", version: "1.0.0" };
const capabilities = { sampling: {}, elicitation: { form: {}, url: {} }, roots: {} };

const sdks = {
  async legacy() {
    const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
    const http = await import("@modelcontextprotocol/sdk/client/streamableHttp.js");
    const stdio = await import("@modelcontextprotocol/sdk/client/stdio.js");
    const transports = { ...http, ...stdio };
    const types = await import("@modelcontextprotocol/sdk/types.js");
    const methods = {
      "sampling/createMessage": types.CreateMessageRequestSchema,
      "elicitation/create": types.ElicitRequestSchema,
      "roots/list": types.ListRootsRequestSchema,
    };
    const client = new Client(info, { capabilities });
    const answer = (method, handler) => client.setRequestHandler(methods[method], handler);
    return { client, answer, transports };
  },
  async modern() {
    const { Client, ...http } = await import("@modelcontextprotocol/client");
    const stdio = await import("@modelcontextprotocol/client/stdio");
    const transports = { ...http, ...stdio };
    const versionNegotiation = { mode: { pin: "2026-07-28" } };
    const client = new Client(info, { capabilities, versionNegotiation });
    const answer = (method, handler) => client.setRequestHandler(method, handler);
    return { client, answer, transports };
  },
};

const steps = {
  "tools/list": (client) => client.listTools(),
  "tools/call": (client, params) => callTool(client, params),
  "prompts/list": (client) => client.listPrompts(),
  "prompts/get": (client, params) => client.getPrompt(params),
  "resources/list": (client) => client.listResources(),
  "resources/templates/list": (client) => client.listResourceTemplates(),
  "resources/read": (client, params) => client.readResource(params),
  "completion/complete": (client, params) => client.complete(params),
  ping: (client) => client.ping(),
};

// The two lines of the SDK differ in where options stand.
function callTool(client, params, options) {
  return mode === "legacy" ? client.callTool(params, undefined, options) : client.callTool(params, options);
}

const [mode, kind, ...target] = process.argv.slice(2);
const { client, answer, transports } = await sdks[mode]();

answer("sampling/createMessage", async () => ({
  role: "assistant",
  content: { type: "text", text: "42 from a model" },
  model: "none",
}));
answer("elicitation/create", async ({ params }) =>
  params.mode === "url" ? { action: "accept" } : { action: "accept", content: { name: "Ada" } });
answer("roots/list", async () => ({ roots: [{ uri: "file:///clients/root" }] }));

// A call that is taken back at its first progress: that, and what the server says of its end.
async function cancelled(mark) {
  const controller = new AbortController();
  const about = (name) => ({ name, arguments: { mark } });
  let heard;
  const onprogress = ({ progress }) => {
    heard = progress;
    controller.abort("no longer needed");
  };
  const options = { signal: controller.signal, onprogress };
  await callTool(client, about("wait"), options).catch((error) => {
    if (!controller.signal.aborted) throw error;
  });
  return { result: await callTool(client, about("cancelled")), heard };
}

async function take({ cancel, method, params = {} }) {
  if (cancel !== undefined) return cancelled(cancel);
  return { result: await steps[method](client, params) };
}

function transport() {
  if (kind === "--stdio") {
    const [command, ...args] = target;
    return new transports.StdioClientTransport({ command, args, env: process.env });
  }
  const key = process.env.PORTCULLIS_KEY;
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  return new transports.StreamableHTTPClientTransport(new URL(target[0]), { requestInit: { headers } });
}

let revision;
const wire = transport();
// The first line of the SDK tells the negotiated revision to its transport alone.
const tell = wire.setProtocolVersion?.bind(wire);
wire.setProtocolVersion = (version) => {
  revision = version;
  tell?.(version);
};

await client.connect(wire);
const outcomes = [];
for (const step of JSON.parse(await text(process.stdin))) {
  try {
    outcomes.push(await take(step));
  } catch (error) {
    if (typeof error.code !== "number") throw error;
    outcomes.push({ error: { code: error.code, message: error.message, data: error.data } });
  }
}
const report = {
  revision: client.getNegotiatedProtocolVersion?.() ?? revision,
  server: client.getServerVersion(),
  capabilities: client.getServerCapabilities(),
  steps: outcomes,
};
await client.close();
process.stdout.write(JSON.stringify(report) + "\n");
