// A server with an MCP App, of the official packages: `apps.mjs NAME`, see ../README.md.

import {
  registerAppResource,
  registerAppTool,
  RESOURCE_MIME_TYPE,
} from "@modelcontextprotocol/ext-apps/server";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import { SubscribeRequestSchema, UnsubscribeRequestSchema } from "@modelcontextprotocol/sdk/types.js";

const [name] = process.argv.slice(2);
const VIEW = "ui://view/main.html";
const PRIVATE = "ui://view/private.html";

const server = new McpServer({ name, version: "1.0.0" });
server.server.registerCapabilities({
  extensions: { "io.modelcontextprotocol/ui": {} },
  resources: { subscribe: true },
});
server.server.setRequestHandler(SubscribeRequestSchema, async () => ({}));
server.server.setRequestHandler(UnsubscribeRequestSchema, async () => ({}));

const text = (text) => ({ content: [{ type: "text", text }] });
const app = (visibility) => ({ _meta: { ui: { resourceUri: VIEW, visibility } } });

registerAppTool(
  server,
  "show",
  { description: "Shows the App.", inputSchema: {}, ...app(["model", "app"]) },
  async () => text(`${name} shows`),
);
// Only the App calls it.
registerAppTool(
  server,
  "refresh",
  { description: "Refreshes the App.", inputSchema: {}, ...app(["app"]) },
  async () => {
    await server.server.sendResourceUpdated({ uri: VIEW });
    return text(`${name} refreshed`);
  },
);
for (const uri of [VIEW, PRIVATE]) {
  registerAppResource(server, uri, uri, {}, async () => ({
    contents: [{ uri, mimeType: RESOURCE_MIME_TYPE, text: `<html>${name}</html>` }],
  }));
}
await server.connect(new StdioServerTransport());
