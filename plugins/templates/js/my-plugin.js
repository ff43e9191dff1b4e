// Refuses calls whose arguments hold the marker of the operator's config = { marker = "…" }.

const schema = {
  type: "object",
  properties: {
    marker: { description: "The text that must not leave", type: "string", minLength: 1 },
  },
  required: ["marker"],
  additionalProperties: false,
};

let config;

const verdict = (decision) => ({ decision, labels: [], findings: [] });

// Keys are text, too.
function holds(value, text) {
  if (typeof value === "string") return value.includes(text);
  if (value === null || typeof value !== "object") return false;
  return Object.entries(value).some(([key, inner]) => key.includes(text) || holds(inner, text));
}

export const guest = {
  describe() {
    return {
      name: "my-plugin",
      version: "0.1.0",
      description: "Refuses calls that carry a marker",
      hooks: [{ events: ["tools/call"], phase: "request" }],
      lifetime: "message",
      configSchema: JSON.stringify(schema),
      hosts: [],
      secrets: [],
      once: false,
      options: [],
    };
  },

  start(json) {
    config = JSON.parse(json);
  },

  inspect(message) {
    if (!holds(JSON.parse(message.payload).arguments, config.marker)) return verdict({ tag: "pass" });
    return verdict({
      tag: "refuse",
      val: { code: "marker", reason: "the arguments hold a marker that must not leave", detail: null },
    });
  },
};
