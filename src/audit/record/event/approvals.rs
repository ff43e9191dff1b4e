//! Events of calls that wait for approval.

use jiff::Timestamp;

use super::content::{Content, content};
use portcullis_protocol::names::DecisionId;

content! {
    /// A call waits for the approval of a person.
    pub struct ApprovalRequested {
        /// `id` of the waiting call.
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub call: DecisionId,
        pub principal: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub server: Option<String>,
        /// Policies that require the approval.
        pub rules: Vec<String>,
        /// Time at which the call is refused without a decision.
        #[schemars(with = "String", extend("format" = "date-time"))]
        pub until: Timestamp,
        /// Host of the webhook that receives the call with its arguments.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub webhook: Option<String>,
    }
    summary("a person is asked whether {principal} may ({}): {call}", rules.join(", "));

    /// The approval webhook could not be reached or returned an invalid response. The call
    /// continues to wait.
    pub struct ApprovalWebhookFailed {
        /// Same value as in its `approval-requested`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub call: DecisionId,
        pub principal: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub server: Option<String>,
        pub reason: String,
    }
    summary("the webhook for approvals was not reached: {reason}: {call}");

    /// A person or the webhook allowed or denied a call. A call without a decision is refused with
    /// `approval-timeout`.
    pub struct ApprovalDecided {
        /// Same value as in its `approval-requested`.
        #[schemars(with = "String", extend("format" = "uuid"))]
        pub call: DecisionId,
        pub principal: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub server: Option<String>,
        pub allowed: bool,
        /// User of this machine, or the webhook, that decided.
        pub by: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub reason: Option<String>,
    }
    summary(
        "{by} {} what {principal} asked for: {call}",
        if *allowed { "allowed" } else { "denied" }
    );
}
