//! Subject, action and resource of a request.

use super::request::{Action, Request, Resource, Subject};

/// A request without its circumstances and arguments.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) subject: Subject<'a>,
    pub(super) action: Action,
    pub(super) resource: Resource<'a>,
    /// Whether the action is the tool's own one, instead of that of all tools.
    pub(super) own: bool,
}

impl<'a> About<'a> {
    pub(super) fn of(request: &Request<'a>) -> Self {
        let Request { subject, action, resource, .. } = *request;
        Self { subject, action, resource, own: false }
    }
}
