// Marks results: `_meta` of every result gets the id of its exchange, so that what turns up elsewhere
// can be found in the audit log. A result that brings such a mark along is refused: it is forged.
//
// Every message meets a fresh instance, so nothing is ever freed: all memory goes with the instance.

#include <stdlib.h>
#include <string.h>

#include "plugin.h"

typedef struct {
    const uint8_t *at, *end;
} slice;

static bool is_space(uint8_t c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

static const uint8_t *skip_space(const uint8_t *at, const uint8_t *end) {
    while (at < end && is_space(*at)) at++;
    return at;
}

// From the quote that begins a string to behind the one that ends it.
static const uint8_t *skip_string(const uint8_t *at, const uint8_t *end) {
    for (at++; at < end && *at != '"'; at++) {
        if (*at == '\\') at++;
    }
    return at < end ? at + 1 : end;
}

static const uint8_t *skip_value(const uint8_t *at, const uint8_t *end) {
    size_t depth = 0;
    while (at < end) {
        uint8_t c = *at;
        if (c == '"') {
            at = skip_string(at, end);
            if (depth == 0) return at;
            continue;
        }
        if (c == '{' || c == '[') depth++;
        if (c == '}' || c == ']') {
            if (depth == 0) return at;
            if (--depth == 0) return at + 1;
        }
        if (depth == 0 && (c == ',' || is_space(c))) return at;
        at++;
    }
    return end;
}

// The value of a member of a JSON object, by its key as it is written, quotes included. The host hands
// over sound JSON in which no key stands twice, not even with other escapes.
static bool member(slice object, slice key, slice *value) {
    const uint8_t *at = skip_space(object.at, object.end), *end = object.end;
    if (at == end || *at != '{') return false;
    at++;
    while ((at = skip_space(at, end)) < end && *at == '"') {
        slice found = {at, skip_string(at, end)};
        at = skip_space(found.end, end);
        if (at < end) at++;  // the colon
        value->at = skip_space(at, end);
        value->end = skip_value(value->at, end);
        size_t length = (size_t)(key.end - key.at);
        if ((size_t)(found.end - found.at) == length && memcmp(found.at, key.at, length) == 0) {
            return true;
        }
        at = skip_space(value->end, end);
        if (at < end) at++;  // the comma
    }
    return false;
}

static slice literal(const char *text) {
    return (slice){(const uint8_t *)text, (const uint8_t *)text + strlen(text)};
}

static slice of(plugin_string_t text) { return (slice){text.ptr, text.ptr + text.len}; }

// Text put together from parts.
static plugin_string_t join(const slice *parts, size_t count) {
    plugin_string_t all = {NULL, 0};
    for (size_t i = 0; i < count; i++) all.len += (size_t)(parts[i].end - parts[i].at);
    uint8_t *to = all.ptr = malloc(all.len ? all.len : 1);
    if (to == NULL) __builtin_trap();
    for (size_t i = 0; i < count; i++) {
        size_t length = (size_t)(parts[i].end - parts[i].at);
        memcpy(to, parts[i].at, length);
        to += length;
    }
    return all;
}

static plugin_string_t text(const char *words) {
    slice part = literal(words);
    return join(&part, 1);
}

// The key of the mark, quotes included.
static slice key;

void exports_guest_describe(exports_guest_manifest_t *manifest) {
    static const char *events[] = {"tools/call", "resources/read", "prompts/get"};
    const size_t count = sizeof events / sizeof *events;

    memset(manifest, 0, sizeof *manifest);
    manifest->name = text("watermark");
    manifest->version = text("0.1.0");
    manifest->description = text("Marks results with the id of their exchange");
    manifest->lifetime = EXPORTS_GUEST_LIFETIME_MESSAGE;
    manifest->config_schema.is_some = true;
    manifest->config_schema.val = text(
        "{\"type\":\"object\",\"properties\":{\"key\":{"
        "\"description\":\"The key of the mark in _meta\",\"type\":\"string\","
        "\"pattern\":\"^[a-z0-9.-]+/[A-Za-z0-9._-]+$\"}},\"additionalProperties\":false}");

    manifest->hooks.ptr = calloc(1, sizeof *manifest->hooks.ptr);
    manifest->hooks.len = 1;
    exports_guest_hook_t *hook = manifest->hooks.ptr;
    hook->phase = EXPORTS_GUEST_PHASE_RESPONSE;
    hook->events.ptr = calloc(count, sizeof *hook->events.ptr);
    hook->events.len = count;
    for (size_t i = 0; i < count; i++) hook->events.ptr[i] = text(events[i]);
}

bool exports_guest_start(plugin_string_t *config, plugin_string_t *error) {
    (void)error;
    // The schema above lets nothing into the key that JSON would have to escape.
    if (!member(of(*config), literal("\"key\""), &key)) {
        key = literal("\"portcullis.example/exchange\"");
    }
    return true;
}

bool exports_guest_inspect(exports_guest_message_t *message, exports_guest_verdict_t *verdict,
                           plugin_string_t *error) {
    (void)error;
    memset(verdict, 0, sizeof *verdict);
    slice payload = of(message->payload), meta, mark;
    // Errors have no `_meta`.
    if (message->is_error) return true;

    bool has_meta = member(payload, literal("\"_meta\""), &meta);
    if (has_meta && member(meta, key, &mark)) {
        verdict->decision.tag = EXPORTS_GUEST_DECISION_REFUSE;
        verdict->decision.val.refuse.code = text("forged");
        verdict->decision.val.refuse.reason = text("the answer brought a watermark along");
        return true;
    }
    // Behind the brace that opens the object that gets a member.
    slice object = has_meta ? meta : payload;
    const uint8_t *into = skip_space(object.at, object.end);
    if (into == object.end || *into != '{') {
        *error = text("the result or its _meta is no object");
        return false;
    }
    into++;
    const uint8_t *next = skip_space(into, payload.end);
    bool is_empty = next < payload.end && *next == '}';
    slice parts[] = {
        {payload.at, into},
        literal(has_meta ? "" : "\"_meta\":{"),
        key,
        literal(":\""),
        of(message->exchange),
        literal(has_meta ? "\"" : "\"}"),
        literal(is_empty ? "" : ","),
        {into, payload.end},
    };
    verdict->decision.tag = EXPORTS_GUEST_DECISION_REPLACE;
    verdict->decision.val.replace = join(parts, sizeof parts / sizeof *parts);
    return true;
}
