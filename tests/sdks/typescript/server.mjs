// A server of the official TypeScript SDK: `server.mjs legacy|modern stdio|http`, see ../README.md.
// The first line of the SDK speaks the legacy revisions, the second speaks 2026-07-28.

import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { z } from "zod";

const [era, transport] = process.argv.slice(2);
const info = { name: `typescript-sdk-${era}`, version: "1.0.0" };
const FORM = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };
const QUESTION = {
  messages: [{ role: "user", content: { type: "text", text: "What is the answer?" } }],
  maxTokens: 16,
};

const text = (text) => ({ content: [{ type: "text", text }] });

// What both lines of the SDK have in the same words.
function offer(server) {
  const echo = { description: "Says it again.", inputSchema: z.object({ text: z.string() }) };
  server.registerTool("echo", echo, async ({ text: said }) => text(`typescript: ${said}`));
  // Zod writes patterns with look-ahead for addresses.
  const invite = { description: "Invites somebody.", inputSchema: z.object({ email: z.email(), at: z.iso.datetime() }) };
  server.registerTool("invite", invite, async ({ email }) => text(`invited ${email}`));
  server.registerResource("watched", "scripted:///watched", {}, async (uri) => ({
    contents: [{ uri: uri.href, text: `the text of ${uri.href}` }],
  }));
  const greet = { description: "Greets somebody.", argsSchema: z.object({ name: z.string() }) };
  server.registerPrompt("greet", era === "legacy" ? { ...greet, argsSchema: greet.argsSchema.shape } : greet, ({ name }) => ({
    messages: [{ role: "user", content: { type: "text", text: `Greet ${name}.` } }],
  }));
  return server;
}

async function legacy() {
  const { McpServer } = await import("@modelcontextprotocol/sdk/server/mcp.js");
  return () => {
    const server = offer(new McpServer(info));
    const asks = { inputSchema: {} };
    server.registerTool("form", { ...asks, description: "Asks the user for a name." }, async () => {
      const params = { message: "Who are you?", requestedSchema: FORM };
      const { content } = await server.server.elicitInput(params);
      return text(`the client said: ${content.name}`);
    });
    server.registerTool("sample", { ...asks, description: "Asks the client's model." }, async () => {
      const { content } = await server.server.createMessage(QUESTION);
      return text(`the client said: ${content.text}`);
    });
    server.registerTool("steps", { ...asks, description: "Takes three steps." }, async (_, extra) => {
      await steps(extra._meta?.progressToken, extra.sendNotification);
      return text("three steps");
    });
    return server;
  };
}

async function modern() {
  const { McpServer, inputRequired } = await import("@modelcontextprotocol/server");
  return () => {
    const server = offer(new McpServer(info));
    const asks = { inputSchema: z.object({}) };
    server.registerTool("form", { ...asks, description: "Asks the user for a name." }, async (_, ctx) => {
      const answer = ctx.mcpReq.inputResponses?.question;
      if (answer) return text(`the client said: ${answer.content.name}`);
      const question = inputRequired.elicit({ message: "Who are you?", requestedSchema: FORM });
      return inputRequired({ inputRequests: { question } });
    });
    server.registerTool("sample", { ...asks, description: "Asks the client's model." }, async (_, ctx) => {
      const answer = ctx.mcpReq.inputResponses?.question;
      if (answer) return text(`the client said: ${answer.content.text}`);
      return inputRequired({ inputRequests: { question: inputRequired.createMessage(QUESTION) } });
    });
    server.registerTool("steps", { ...asks, description: "Takes three steps." }, async (_, ctx) => {
      await steps(ctx.mcpReq._meta?.progressToken, ctx.mcpReq.notify);
      return text("three steps");
    });
    return server;
  };
}

async function steps(progressToken, notify) {
  for (const progress of [1, 2, 3]) {
    await notify({ method: "notifications/progress", params: { progressToken, progress, total: 3 } });
  }
}

// The first line's server has one session for each client.
async function sessions(make) {
  const { StreamableHTTPServerTransport } = await import("@modelcontextprotocol/sdk/server/streamableHttp.js");
  const open = new Map();
  return async (request, response) => {
    let session = open.get(request.headers["mcp-session-id"]);
    if (!session) {
      session = new StreamableHTTPServerTransport({
        sessionIdGenerator: randomUUID,
        onsessioninitialized: (id) => open.set(id, session),
      });
      await make().connect(session);
    }
    await session.handleRequest(request, response);
  };
}

const make = await { legacy, modern }[era]();
if (transport === "http") {
  let handler;
  if (era === "legacy") {
    handler = await sessions(make);
  } else {
    const { createMcpHandler } = await import("@modelcontextprotocol/server");
    const { toNodeHandler } = await import("@modelcontextprotocol/node");
    handler = toNodeHandler(createMcpHandler(make, { legacy: "reject" }));
  }
  const http = createServer(handler);
  http.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${http.address().port}/mcp`));
} else if (era === "legacy") {
  const { StdioServerTransport } = await import("@modelcontextprotocol/sdk/server/stdio.js");
  await make().connect(new StdioServerTransport());
} else {
  const { serveStdio } = await import("@modelcontextprotocol/server/stdio");
  serveStdio(make);
}
