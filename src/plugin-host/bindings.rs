//! Types generated from `plugins/wit`, so that the host cannot differ from the contract.

wasmtime::component::bindgen!({
    path: "../../plugins/wit",
    world: "plugin",
    imports: {
        "portcullis:interceptor/http.send": async,
        "portcullis:interceptor/random.bytes": trappable,
    },
    exports: { default: async },
});
