//! Categories of events in exports.

/// Severity of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    Informational,
    Low,
    Medium,
    High,
    Critical,
}

/// Classes of OCSF for events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// 6002, Application Lifecycle: a program starts, stops or changes.
    Lifecycle,
    /// 6008, Application Error: a program fails.
    Error,
    /// 6003, API Activity: a user calls an interface.
    Api,
    /// 3002, Authentication: a user logs on or off.
    Authentication,
    /// 3004, Entity Management: a managed entity is used or changes.
    Entity,
    /// 4001, Network Activity: a connection.
    Network,
    /// 0, Base Event: events without a class.
    Base,
}

/// Activity of a class: its number, and its name in OCSF. The name of number 99 is that of the event.
pub(crate) type Activity = (u8, &'static str);

/// Category of an event in exports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Category {
    pub severity: Severity,
    pub class: Class,
    pub activity: Activity,
    pub failed: bool,
}

/// Category of an event that is not a failure.
pub(super) const fn usual(severity: Severity, class: Class, activity: Activity) -> Category {
    Category { severity, class, activity, failed: false }
}

/// Category of a failure.
pub(super) const fn failure(severity: Severity, class: Class, activity: Activity) -> Category {
    Category { severity, class, activity, failed: true }
}

pub(super) const INSTALL: Activity = (1, "Install");
pub(super) const START: Activity = (3, "Start");
pub(super) const STOP: Activity = (4, "Stop");
pub(super) const ENABLE: Activity = (6, "Enable");
pub(super) const GENERAL: Activity = (1, "General Error");
pub(super) const CREATE: Activity = (1, "Create");
pub(super) const READ: Activity = (2, "Read");
pub(super) const UPDATE: Activity = (3, "Update");
pub(super) const DELETE: Activity = (4, "Delete");
pub(super) const LOGON: Activity = (1, "Logon");
pub(super) const LOGOFF: Activity = (2, "Logoff");
pub(super) const OPEN: Activity = (1, "Open");
pub(super) const CLOSE: Activity = (2, "Close");
pub(super) const OTHER: Activity = (99, "");
