//! Events of refusals that have no records of their own.

use jiff::Timestamp;

use super::content::{Content, content, then};

content! {
    /// Common values of refusals that share a decision id.
    #[derive(Default, Hash)]
    pub struct RefusalGroup {
        /// Code of the refusals.
        pub code: String,
        /// Name of the client, `local:USER` or `anonymous`. Absent if no principal was identified.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub principal: Option<String>,
        /// Server, if messages of a server were refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub server: Option<String>,
        /// Address of the sender; for IPv6, its /64 network.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub network: Option<String>,
        /// Whether the refusals are of several networks, or users of this machine, beyond those
        /// that are counted separately.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        pub others: bool,
    }
    summary(
        "with {code}{}{}{}{}",
        then(" of ", principal),
        then(" of server ", server),
        then(" from ", network),
        if *others { " from other places" } else { "" }
    );

    /// More messages are refused than are recorded individually. From now on, refusals with the
    /// values of this event share its `id`.
    pub struct RefusalSummaryOpened {
        #[serde(flatten)]
        pub group: RefusalGroup,
    }
    summary("too many refusals to record each: from here on those {group} share this id");

    /// Number of messages that were refused without individual records. Their responses, if any,
    /// have the `id` of this event. One `id` can have several such records: add their counts.
    pub struct RefusalsSummarized {
        #[serde(flatten)]
        pub group: RefusalGroup,
        /// Number of refusals in this record.
        pub count: u64,
        /// Time of the first refusal. The last one was before this record.
        #[schemars(with = "String", extend("format" = "date-time"))]
        pub since: Timestamp,
    }
    summary("{count} refusals {group} since {since} share this id");
}

impl RefusalGroup {
    /// Group of refusals with this code.
    pub fn of(code: &str) -> Self {
        Self { code: code.to_owned(), ..Self::default() }
    }

    /// Group for the same refusals if there are too many groups: by code, server and, if known,
    /// principal.
    pub fn among_others(self, known: bool) -> Self {
        let principal = self.principal.filter(|_| known);
        Self { principal, network: None, others: true, ..self }
    }
}
