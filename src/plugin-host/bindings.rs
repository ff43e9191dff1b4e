//! The types of `plugins/wit`, generated, so that the host cannot drift from the contract.

wasmtime::component::bindgen!({
    path: "../../plugins/wit",
    world: "plugin",
    imports: {
        "portcullis:interceptor/http.send": async,
        "portcullis:interceptor/random.bytes": trappable,
    },
    exports: { default: async },
});
