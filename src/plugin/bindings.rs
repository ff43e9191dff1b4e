//! The types of `plugins/wit`, generated, so that the host cannot drift from the contract.

wasmtime::component::bindgen!({
    path: "plugins/wit",
    world: "plugin",
    exports: { "portcullis:interceptor/guest.inspect": async },
});
