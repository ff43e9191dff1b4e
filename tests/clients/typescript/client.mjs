// Takes MCP steps with the official TypeScript SDK and reports them as JSON: see ../README.md.
// The first line of the SDK speaks the legacy revisions, the second speaks 2026-07-28.

import { text } from "node:stream/consumers";

const info = { name: "typescript-sdk", version: "1.0.0" };

const sdks = {
  async legacy() {
    const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
    const http = await import("@modelcontextprotocol/sdk/client/streamableHttp.js");
    const stdio = await import("@modelcontextprotocol/sdk/client/stdio.js");
    const transports = { ...http, ...stdio };
    return { client: new Client(info), transports };
  },
  async modern() {
    const { Client, ...http } = await import("@modelcontextprotocol/client");
    const stdio = await import("@modelcontextprotocol/client/stdio");
    const transports = { ...http, ...stdio };
    const versionNegotiation = { mode: { pin: "2026-07-28" } };
    return { client: new Client(info, { versionNegotiation }), transports };
  },
};

const steps = {
  "tools/list": (client) => client.listTools(),
  "tools/call": (client, params) => client.callTool(params),
  "prompts/list": (client) => client.listPrompts(),
  "prompts/get": (client, params) => client.getPrompt(params),
  "resources/list": (client) => client.listResources(),
  "resources/templates/list": (client) => client.listResourceTemplates(),
  "resources/read": (client, params) => client.readResource(params),
  "completion/complete": (client, params) => client.complete(params),
  ping: (client) => client.ping(),
};

const [mode, kind, ...target] = process.argv.slice(2);
const { client, transports } = await sdks[mode]();

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
for (const { method, params = {} } of JSON.parse(await text(process.stdin))) {
  try {
    outcomes.push({ result: await steps[method](client, params) });
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
