//! Sends one message of a local caller through a proxy in this process.

use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;

use portcullis_gateway::{Caller, Gateway};
use portcullis_protocol::{
    codec::Frame,
    exchange::{Revision, Transport, View},
    identity::Principal,
};

/// Sends a message as `principal`, and returns the response; `None` if it was cancelled.
///
/// # Errors
/// The message is invalid, or the proxy refuses or drops it.
pub async fn send(
    proxy: &Arc<Gateway>,
    principal: Arc<Principal>,
    text: Bytes,
) -> anyhow::Result<Option<Bytes>> {
    let caller = Caller {
        principal,
        transport: Transport::Cli,
        client_addr: None,
        view: View::All,
        session: None,
        calls: None,
        revision: Revision::LATEST_MODERN,
        headers: None,
    };
    let frame = Frame::parse(text, proxy.request_caps())?;
    let permit = proxy.admission.acquire(&caller.principal)?;
    // The caller reads the response only: notifications of the call have no receiver.
    let response = proxy.start(caller, frame, permit).work.await;
    Ok(response.context("handling the message panicked")?.text)
}
