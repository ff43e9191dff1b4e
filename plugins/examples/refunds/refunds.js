// Refuses refunds above a limit, and above a limit a day for whoever asks. The operator says:
// config = { limits = { EUR = 100 }, a-day = { EUR = 500 } }

import clock from "portcullis:interceptor/clock@0.1.0";
import state from "portcullis:interceptor/state@0.1.0";

const limits = {
  type: "object",
  propertyNames: { pattern: "^[A-Z]{3}$" },
  additionalProperties: { type: "number", exclusiveMinimum: 0, maximum: 1e9 },
};

const schema = {
  type: "object",
  properties: {
    tool: { description: "The name of the tool on its server", type: "string", default: "refund" },
    limits: { description: "The largest refund by currency", ...limits },
    "a-day": { description: "What one caller may refund in a day, by currency", ...limits },
  },
  required: ["limits"],
  additionalProperties: false,
};

const DAY = 24 * 60 * 60 * 1000;

let config;

const verdict = (decision) => ({ decision, labels: [], findings: [] });
const pass = () => verdict({ tag: "pass" });
const refuse = (code, reason) =>
  verdict({ tag: "refuse", val: { code, reason, detail: null } });

// Hundredths, since sums of fractions would drift.
const hundredths = (amount) => Math.round(amount * 100);

export const guest = {
  describe() {
    return {
      name: "refunds",
      version: "0.1.0",
      description: "Refuses refunds above a limit",
      hooks: [{ events: ["tools/call"], phase: "request" }],
      lifetime: "message",
      configSchema: JSON.stringify(schema),
      hosts: [],
      secrets: [],
      // It counts. The operator puts it behind plugins that replace payloads.
      once: true,
      options: [],
    };
  },

  start(json) {
    config = { tool: "refund", "a-day": {}, ...JSON.parse(json) };
    for (const currency of Object.keys(config["a-day"])) {
      if (!Object.hasOwn(config.limits, currency)) {
        throw `a-day has a limit for ${currency}, and limits has none`;
      }
    }
  },

  inspect(message) {
    if (message.target.tag !== "tool" || message.target.val !== config.tool) return pass();

    const { amount, currency } = JSON.parse(message.payload).arguments ?? {};
    // `1e-9` and `"100"` are no amounts, whatever the server makes of them.
    if (typeof amount !== "number" || !(amount >= 0.01)) {
      return refuse("amount", "a refund needs an amount: a number of 0.01 or more");
    }
    if (typeof currency !== "string" || !Object.hasOwn(config.limits, currency)) {
      return refuse("currency", "refunds are not made in this currency");
    }
    if (amount > config.limits[currency]) {
      return refuse("limit", `a refund is at most ${config.limits[currency]} ${currency}`);
    }
    const most = config["a-day"][currency];
    if (most === undefined) return pass();

    // Counted by `add`, because two calls can be here at the same time.
    const day = Math.floor(clock.now() / DAY);
    const { kind, name } = message.principal;
    const key = `${day}/${currency}/${kind}/${name}`;
    const spent = state.add(key, hundredths(amount));
    if (spent > hundredths(most)) {
      state.add(key, -hundredths(amount));
      return refuse("a-day", `refunds are at most ${most} ${currency} a day`);
    }
    // Yesterday's counters are nobody's business any more.
    if (spent === hundredths(amount)) {
      for (const old of state.keys("", null)) if (Number(old.split("/")[0]) < day) state.delete(old);
    }
    return pass();
  },
};
