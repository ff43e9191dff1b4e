// The server that the conformance suite needs, of the official TypeScript SDK:
// `conformance.mjs v1|v2`, see ../README.md. The second line speaks both eras.

import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { z } from "zod";

const line = process.argv[2];
const info = { name: `typescript-sdk-${line}`, version: "1.0.0" };
const capabilities = {
  tools: { listChanged: true },
  resources: { subscribe: true, listChanged: true },
  prompts: { listChanged: true },
  logging: {},
  completions: {},
};

const PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
const WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA=";

const text = (text) => ({ type: "text", text });
const image = { type: "image", data: PNG, mimeType: "image/png" };
const audio = { type: "audio", data: WAV, mimeType: "audio/wav" };
const embedded = (uri, mimeType, text) => ({ type: "resource", resource: { uri, mimeType, text } });
const result = (...content) => ({ content });
const pause = () => new Promise((done) => setTimeout(done, 50));
const form = (properties, required = []) => ({ type: "object", properties, required });
const titled = (...values) => values.map((value) => ({ const: value, title: `The ${value}` }));

const DEFAULTS = form({
  name: { type: "string", default: "John Doe" },
  age: { type: "integer", default: 30 },
  score: { type: "number", default: 95.5 },
  status: { type: "string", enum: ["active", "inactive", "pending"], default: "active" },
  verified: { type: "boolean", default: true },
});
const ENUMS = form({
  untitledSingle: { type: "string", enum: ["a", "b", "c"] },
  titledSingle: { type: "string", oneOf: titled("a", "b", "c") },
  legacyEnum: { type: "string", enum: ["a", "b", "c"], enumNames: ["The a", "The b", "The c"] },
  untitledMulti: { type: "array", items: { type: "string", enum: ["a", "b", "c"] } },
  titledMulti: { type: "array", items: { anyOf: titled("a", "b", "c") } },
});
const FULL_SCHEMA = {
  $schema: "https://json-schema.org/draft/2020-12/schema",
  type: "object",
  $defs: {
    address: {
      $anchor: "addressDef",
      type: "object",
      properties: { street: { type: "string" }, city: { type: "string" } },
    },
  },
  properties: {
    name: { type: "string" },
    address: { $ref: "#/$defs/address" },
    contactMethod: { type: "string", enum: ["phone", "email"] },
    phone: { type: "string" },
    email: { type: "string" },
  },
  allOf: [{ anyOf: [{ required: ["phone"] }, { required: ["email"] }] }],
  if: { properties: { contactMethod: { const: "phone" } }, required: ["contactMethod"] },
  then: { required: ["phone"] },
  else: { required: ["email"] },
  additionalProperties: false,
};

// Names the members of a request's context that the two lines have under different names.
const contexts = {
  v1: ({ sendNotification, sendRequest, _meta, closeSSEStream }) => ({
    notify: sendNotification,
    ask: (request) => sendRequest(request, z.looseObject({})),
    token: _meta?.progressToken,
    close: closeSSEStream,
  }),
  v2: ({ mcpReq, http }) => ({
    notify: mcpReq.notify,
    ask: mcpReq.send,
    token: mcpReq._meta?.progressToken,
    close: http?.closeSSE,
  }),
};

// Adds what both lines have in the same words.
function offer(server) {
  const tool = (name, shape, call) => {
    const inputSchema = z.object(shape);
    server.registerTool(name, { description: `Tool ${name}`, inputSchema }, (args, context) =>
      call(args, contexts[line](context)),
    );
  };
  tool("test_simple_text", {}, () => result(text("This is a simple text response for testing.")));
  tool("test_image_content", {}, () => result(image));
  tool("test_audio_content", {}, () => result(audio));
  tool("test_embedded_resource", {}, () =>
    result(embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")),
  );
  tool("test_multiple_content_types", {}, () =>
    result(
      text("Multiple content types test:"),
      image,
      embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
    ),
  );
  tool("test_error_handling", {}, () => {
    throw new Error("This tool intentionally returns an error for testing");
  });
  tool("test_tool_with_logging", {}, async (_, { notify }) => {
    for (const data of ["Tool execution started", "Tool processing data", "Tool execution completed"]) {
      await notify({ method: "notifications/message", params: { level: "info", data } });
      await pause();
    }
    return result(text("logged"));
  });
  tool("test_tool_with_progress", {}, async (_, { notify, token: progressToken }) => {
    for (const progress of progressToken === undefined ? [] : [0, 50, 100]) {
      const params = { progressToken, progress, total: 100, message: `step ${progress}` };
      await notify({ method: "notifications/progress", params });
      await pause();
    }
    return result(text(String(progressToken)));
  });
  tool("test_reconnection", {}, async (_, { close }) => {
    close?.();
    await pause();
    return result(text("reconnected"));
  });
  tool("test_sampling", { prompt: z.string() }, async ({ prompt }, { ask }) => {
    const messages = [{ role: "user", content: text(prompt) }];
    const answer = await ask({ method: "sampling/createMessage", params: { messages, maxTokens: 100 } });
    return result(text(`LLM response: ${answer.content.text}`));
  });
  const asking = (name, shape, requestedSchema, message = "Please answer") =>
    tool(name, shape, async (args, { ask }) => {
      const params = { message: args.message ?? message, requestedSchema };
      const { action, content } = await ask({ method: "elicitation/create", params });
      return result(text(`Elicitation completed: action=${action}, content=${JSON.stringify(content)}`));
    });
  const response = form({ response: { type: "string" } }, ["response"]);
  asking("test_elicitation", { message: z.string() }, response);
  asking("test_elicitation_sep1034_defaults", {}, DEFAULTS);
  asking("test_elicitation_sep1330_enums", {}, ENUMS);

  const resource = (name, uri, mimeType, body) =>
    server.registerResource(name, uri, { mimeType }, ({ href }) => ({
      contents: [{ uri: href, mimeType, ...body }],
    }));
  resource("text", "test://static-text", "text/plain", { text: "This is the content of the static text resource." });
  resource("binary", "test://static-binary", "image/png", { blob: PNG });
  resource("watched", "test://watched-resource", "text/plain", { text: "Watched resource content" });

  const prompt = (name, names, messages) => {
    const shape = Object.fromEntries(names.map((name) => [name, z.string()]));
    const argsSchema = line === "v1" ? shape : z.object(shape);
    server.registerPrompt(name, { description: `Prompt ${name}`, argsSchema }, (args) => ({
      messages: messages(args).map((content) => ({ role: "user", content })),
    }));
  };
  prompt("test_simple_prompt", [], () => [text("This is a simple prompt for testing.")]);
  prompt("test_prompt_with_arguments", ["arg1", "arg2"], ({ arg1, arg2 }) => [
    text(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`),
  ]);
  prompt("test_prompt_with_embedded_resource", ["resourceUri"], ({ resourceUri }) => [
    embedded(resourceUri, "text/plain", "Embedded resource content for testing."),
    text("Please process the embedded resource above."),
  ]);
  prompt("test_prompt_with_image", [], () => [image, text("Please analyze the image above.")]);
}

const template = (uri, { id }) => ({
  contents: [{ uri: uri.href, mimeType: "application/json", text: JSON.stringify({ id, templateTest: true, data: `Data for ID: ${id}` }) }],
});
const TEMPLATE = "test://template/{id}/data";
const NO_COMPLETION = { completion: { values: [], total: 0, hasMore: false } };

// The server of the first line, which speaks the legacy revisions.
async function v1() {
  const { McpServer, ResourceTemplate } = await import("@modelcontextprotocol/sdk/server/mcp.js");
  const types = await import("@modelcontextprotocol/sdk/types.js");
  const { StreamableHTTPServerTransport } = await import("@modelcontextprotocol/sdk/server/streamableHttp.js");
  const make = () => {
    const server = new McpServer(info, { capabilities });
    offer(server);
    server.registerResource("template", new ResourceTemplate(TEMPLATE, { list: undefined }), {}, template);
    server.server.setRequestHandler(types.SubscribeRequestSchema, () => ({}));
    server.server.setRequestHandler(types.UnsubscribeRequestSchema, () => ({}));
    server.server.setRequestHandler(types.CompleteRequestSchema, () => NO_COMPLETION);
    return server;
  };
  return sessions(make, StreamableHTTPServerTransport);
}

// The server of the second line, which speaks both eras.
async function v2() {
  const sdk = await import("@modelcontextprotocol/server");
  const { NodeStreamableHTTPServerTransport, toNodeHandler } = await import("@modelcontextprotocol/node");
  const { inputRequired, acceptedContent } = sdk;
  const states = sdk.createRequestStateCodec({ key: crypto.getRandomValues(new Uint8Array(32)) });
  const elicit = (name, type) =>
    inputRequired.elicit({ message: `What is the ${name}?`, requestedSchema: form({ [name]: { type } }, [name]) });
  const sample = () =>
    inputRequired.createMessage({ messages: [{ role: "user", content: text("What is the capital of France?") }], maxTokens: 100 });
  const make = () => {
    const server = new sdk.McpServer(info, { capabilities, requestState: { verify: states.verify } });
    offer(server);
    server.registerResource("template", new sdk.ResourceTemplate(TEMPLATE, { list: undefined }), {}, template);
    server.server.setRequestHandler("resources/subscribe", () => ({}));
    server.server.setRequestHandler("resources/unsubscribe", () => ({}));
    server.server.setRequestHandler("completion/complete", () => NO_COMPLETION);
    const tool = (name, schema, call) =>
      server.registerTool(name, { description: `Tool ${name}`, inputSchema: sdk.fromJsonSchema(schema) }, call);
    tool("json_schema_2020_12_tool", FULL_SCHEMA, () => result(text("valid")));
    const region = { type: "string", "x-mcp-header": "Region" };
    tool("test_x_mcp_header", form({ region }), ({ region }) => result(text(`region=${region}`)));
    tool("test_streaming_elicitation", form({}), () => result(text("streamed")));
    tool("test_logging_tool", form({}), async (_, { mcpReq }) => {
      await mcpReq.log("info", "test_logging_tool");
      return result(text("logged"));
    });
    tool("test_trigger_tool_change", form({}), () => {
      modern.notify.toolsChanged();
      return result(text("changed"));
    });
    tool("test_trigger_prompt_change", form({}), () => {
      modern.notify.promptsChanged();
      return result(text("changed"));
    });
    // Asks for these inputs until all are there.
    const asks = (name, inputs, state) =>
      tool(name, form({}), async (_, { mcpReq }) => {
        const answers = mcpReq.inputResponses ?? {};
        const complete = (name) =>
          inputs()[name].method === "elicitation/create" ? acceptedContent(answers, name) : answers[name];
        if (Object.keys(inputs()).every(complete) && (!state || mcpReq.requestState())) {
          return result(text(`state-ok: ${JSON.stringify(answers)}`));
        }
        const requestState = state && (await states.mint({ nonce: randomUUID() }));
        return inputRequired({ inputRequests: inputs(), requestState });
      });
    asks("test_missing_capability", () => ({ llm_answer: sample() }));
    asks("test_input_required_result_elicitation", () => ({ user_name: elicit("name", "string") }));
    asks("test_input_required_result_sampling", () => ({ capital_question: sample() }));
    asks("test_input_required_result_list_roots", () => ({ client_roots: inputRequired.listRoots() }));
    asks("test_input_required_result_request_state", () => ({ confirm: elicit("ok", "boolean") }), true);
    asks("test_input_required_result_tampered_state", () => ({ confirm: elicit("ok", "boolean") }), true);
    const several = () => ({ user_name: elicit("name", "string"), greeting: sample(), client_roots: inputRequired.listRoots() });
    asks("test_input_required_result_multiple_inputs", several, true);
    tool("test_input_required_result_multi_round", form({}), async (_, { mcpReq }) => {
      const round = mcpReq.requestState()?.round ?? 0;
      if (round === 2) return result(text("Multi-round complete"));
      const inputRequests = { [`step${round + 1}`]: elicit(["name", "color"][round], "string") };
      return inputRequired({ inputRequests, requestState: await states.mint({ round: round + 1 }) });
    });
    tool("test_input_required_result_capabilities", form({}), (_, { mcpReq }) => {
      if (mcpReq.inputResponses) return result(text("answered"));
      const declared = mcpReq.envelope?.[sdk.CLIENT_CAPABILITIES_META_KEY];
      const of = { user_name: "elicitation", greeting: "sampling", client_roots: "roots" };
      const inputs = Object.entries(several()).filter(([name]) => declared?.[of[name]]);
      return inputRequired({ inputRequests: Object.fromEntries(inputs) });
    });
    server.registerPrompt("test_input_required_result_prompt", { description: "Asks the user" }, ({ mcpReq }) => {
      const answer = acceptedContent(mcpReq.inputResponses, "user_context")?.context;
      if (!answer) return inputRequired({ inputRequests: { user_context: elicit("context", "string") } });
      return { messages: [{ role: "user", content: text(`Use the following context: ${answer}`) }] };
    });
    return server;
  };
  const legacy = sessions(make, NodeStreamableHTTPServerTransport);
  const modern = sdk.createMcpHandler(make);
  const modernHandler = toNodeHandler(modern);
  return (request, response, body) => {
    const inbound = sdk.classifyInboundRequest({
      httpMethod: request.method,
      protocolVersionHeader: request.headers["mcp-protocol-version"],
      mcpMethodHeader: request.headers["mcp-method"],
      body,
    });
    return (inbound.kind === "legacy" ? legacy : modernHandler)(request, response, body);
  };
}

// Serves each client with a session of its own.
function sessions(make, Transport) {
  const open = new Map();
  return async (request, response, body) => {
    const id = request.headers["mcp-session-id"];
    let session = open.get(id);
    if (id && !session) return response.writeHead(404).end();
    if (!session) {
      session = new Transport({
        sessionIdGenerator: randomUUID,
        onsessioninitialized: (id) => open.set(id, session),
        onsessionclosed: (id) => open.delete(id),
        eventStore: events(),
        retryInterval: 500,
      });
      await make().connect(session);
    }
    await session.handleRequest(request, response, body);
  };
}

// Keeps the events of a session, so that streams can be resumed.
function events() {
  const kept = [];
  return {
    storeEvent: async (stream, message) => `${kept.push({ stream, message }) - 1}`,
    replayEventsAfter: async (last, { send }) => {
      const { stream } = kept[Number(last)];
      for (const [id, event] of kept.entries()) {
        const { message } = event;
        if (id > Number(last) && event.stream === stream && message.jsonrpc) await send(`${id}`, message);
      }
      return stream;
    },
  };
}

const handle = await { v1, v2 }[line]();
const http = createServer(async (request, response) => {
  const chunks = await request.toArray();
  let body;
  try {
    body = chunks.length ? JSON.parse(Buffer.concat(chunks)) : undefined;
  } catch {
    return response.writeHead(400).end();
  }
  await handle(request, response, body);
});
http.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${http.address().port}/mcp`));
