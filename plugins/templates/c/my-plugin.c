// Refuses calls that are larger than the operator's config = { max = BYTES }.
//
// Every message meets a fresh instance, so nothing is ever freed: all memory goes with the instance.

#include <stdlib.h>
#include <string.h>

#include "plugin.h"

// What the host takes over has to be on the heap.
static plugin_string_t text(const char *words) {
    plugin_string_t made = {malloc(strlen(words) + 1), strlen(words)};
    if (made.ptr == NULL) __builtin_trap();
    memcpy(made.ptr, words, made.len);
    return made;
}

static size_t max;

void exports_guest_describe(exports_guest_manifest_t *manifest) {
    memset(manifest, 0, sizeof *manifest);
    manifest->name = text("my-plugin");
    manifest->version = text("0.1.0");
    manifest->description = text("Refuses calls that are too large");
    manifest->lifetime = EXPORTS_GUEST_LIFETIME_MESSAGE;
    manifest->config_schema.is_some = true;
    manifest->config_schema.val = text(
        "{\"type\":\"object\",\"properties\":{\"max\":{\"description\":\"Bytes of params\","
        "\"type\":\"integer\",\"minimum\":1,\"maximum\":1000000}},"
        "\"required\":[\"max\"],\"additionalProperties\":false}");

    exports_guest_hook_t *hook = calloc(1, sizeof *hook);
    if (hook == NULL) __builtin_trap();
    hook->phase = EXPORTS_GUEST_PHASE_REQUEST;
    hook->events.ptr = calloc(1, sizeof *hook->events.ptr);
    if (hook->events.ptr == NULL) __builtin_trap();
    hook->events.ptr[0] = text("tools/call");
    hook->events.len = 1;
    manifest->hooks.ptr = hook;
    manifest->hooks.len = 1;
}

// The schema lets nothing but {"max":NUMBER} through.
bool exports_guest_start(plugin_string_t *config, plugin_string_t *error) {
    (void)error;
    max = 0;
    for (size_t i = 0; i < config->len; i++) {
        uint8_t c = config->ptr[i];
        if (c >= '0' && c <= '9') max = max * 10 + (size_t)(c - '0');
    }
    return true;
}

bool exports_guest_inspect(exports_guest_message_t *message, exports_guest_verdict_t *verdict,
                           plugin_string_t *error) {
    (void)error;
    memset(verdict, 0, sizeof *verdict);
    if (message->payload.len <= max) return true;  // All zeros: pass.
    verdict->decision.tag = EXPORTS_GUEST_DECISION_REFUSE;
    verdict->decision.val.refuse.code = text("too-large");
    verdict->decision.val.refuse.reason = text("the call is larger than is allowed");
    return true;
}
