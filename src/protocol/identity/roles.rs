//! Roles of users and groups of this machine at the admin socket.
//!
//! Root and the user who runs the proxy may do everything, because they could read its files. All
//! other users may do only what the config grants.

use std::{borrow::Cow, ffi::CString, fmt, str::FromStr};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Role of a user at the admin socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Reads and verifies the audit log.
    Auditor,
    /// Sees the state and the logs of servers and drops old records, but cannot read records.
    Operator,
    /// Sees the calls that wait for approval, and allows or denies them.
    Approver,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auditor => "auditor",
            Self::Operator => "operator",
            Self::Approver => "approver",
        })
    }
}

/// Members of each role. Root and the user who runs the proxy have all roles.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Roles {
    /// Users who may read, export and verify the audit log: `user:NAME` or `group:NAME` of this
    /// machine.
    pub auditor: Vec<Member>,
    /// Users who may see the state and the logs of servers and drop old records, but not read
    /// records.
    pub operator: Vec<Member>,
    /// Users who may see, allow and deny calls that wait for approval.
    pub approver: Vec<Member>,
}

/// User or group of this machine: `user:NAME`, `group:NAME`, or a number instead of the name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Member {
    User(NameOrId),
    Group(NameOrId),
}

/// Name or number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NameOrId {
    Name(String),
    Id(u32),
}

/// Error for text that names neither a user nor a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IllegalMember {
    #[error("write `user:NAME` or `group:NAME`, of this machine")]
    Form,
    #[error("a name has no spaces, colons, commas or slashes")]
    Name,
    #[error("the kernel reports this number for every user without a mapping: choose another user")]
    Unmapped,
}

/// Number that the kernel reports for a user or group without a mapping (from another user
/// namespace). It is also the number of `nobody`, so it proves nothing.
const UNMAPPED: u32 = 65_534;

impl FromStr for Member {
    type Err = IllegalMember;

    fn from_str(text: &str) -> Result<Self, IllegalMember> {
        let (kind, name) = text.split_once(':').ok_or(IllegalMember::Form)?;
        let legal = !name.is_empty()
            && name.len() <= 256
            && !name.chars().any(|c| c.is_whitespace() || c.is_control() || ":,/".contains(c));
        let member = match kind {
            "user" => Self::User,
            "group" => Self::Group,
            _ => return Err(IllegalMember::Form),
        };
        if !legal {
            return Err(IllegalMember::Name);
        }
        if !name.bytes().all(|b| b.is_ascii_digit()) {
            return Ok(member(NameOrId::Name(name.to_owned())));
        }
        match name.parse().map_err(|_| IllegalMember::Name)? {
            UNMAPPED | u32::MAX => Err(IllegalMember::Unmapped),
            id => Ok(member(NameOrId::Id(id))),
        }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, named) = match self {
            Self::User(named) => ("user", named),
            Self::Group(named) => ("group", named),
        };
        match named {
            NameOrId::Name(name) => write!(f, "{kind}:{name}"),
            NameOrId::Id(id) => write!(f, "{kind}:{id}"),
        }
    }
}

impl TryFrom<String> for Member {
    type Error = IllegalMember;

    fn try_from(text: String) -> Result<Self, IllegalMember> {
        text.parse()
    }
}

impl From<Member> for String {
    fn from(member: Member) -> String {
        member.to_string()
    }
}

impl JsonSchema for Member {
    fn schema_name() -> Cow<'static, str> {
        "Member".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "member",
            "description": "`user:NAME` or `group:NAME` of this machine.",
        })
    }
}

impl Member {
    /// Number of this user or group. `None` if the machine does not know the name. Queries the name
    /// service, which may block.
    pub fn id(&self) -> Option<u32> {
        match self {
            Self::User(NameOrId::Id(id)) | Self::Group(NameOrId::Id(id)) => Some(*id),
            Self::User(NameOrId::Name(name)) => {
                User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
            }
            Self::Group(NameOrId::Name(name)) => {
                Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
            }
        }
    }

    fn includes(&self, uid: u32, groups: &[u32]) -> bool {
        self.id().is_some_and(|id| {
            id != UNMAPPED
                && match self {
                    Self::User(_) => id == uid,
                    Self::Group(_) => groups.contains(&id),
                }
        })
    }
}

/// Rights of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserRights {
    /// Root, or the user who runs the proxy.
    pub owner: bool,
    auditor: bool,
    operator: bool,
    approver: bool,
}

impl UserRights {
    pub const OWNER: Self = Self { owner: true, auditor: true, operator: true, approver: true };
    pub const STRANGER: Self =
        Self { owner: false, auditor: false, operator: false, approver: false };

    /// Whether the user has this role.
    pub fn has(self, role: Role) -> bool {
        match role {
            Role::Auditor => self.auditor,
            Role::Operator => self.operator,
            Role::Approver => self.approver,
        }
    }
}

/// Whether this is root, or the user of this process.
pub fn is_owner(uid: u32) -> bool {
    uid == 0 || uid == Uid::effective().as_raw()
}

impl Roles {
    /// Whether no role is granted.
    pub fn is_empty(&self) -> bool {
        self.members().next().is_none()
    }

    /// All members with their roles.
    pub fn members(&self) -> impl Iterator<Item = (Role, usize, &Member)> {
        [Role::Auditor, Role::Operator, Role::Approver]
            .into_iter()
            .flat_map(|role| self.with(role).iter().enumerate().map(move |(at, m)| (role, at, m)))
    }

    /// Members with this role.
    pub fn with(&self, role: Role) -> &[Member] {
        match role {
            Role::Auditor => &self.auditor,
            Role::Operator => &self.operator,
            Role::Approver => &self.approver,
        }
    }

    /// Rights of the user whose process has this user and group. The user's further groups come
    /// from the name service, so that a user who was removed from a group has lost the role. Blocks
    /// during the lookup.
    pub fn rights(&self, uid: u32, gid: u32) -> UserRights {
        if is_owner(uid) {
            return UserRights::OWNER;
        }
        if uid == UNMAPPED || self.is_empty() {
            return UserRights::STRANGER;
        }
        let has = |role| self.grant(role, uid, gid);
        UserRights {
            owner: false,
            auditor: has(Role::Auditor),
            operator: has(Role::Operator),
            approver: has(Role::Approver),
        }
    }

    /// Whether the config grants this role to the user, whichever user runs this process. Blocks as
    /// [`Roles::rights`].
    pub fn grant(&self, role: Role, uid: u32, gid: u32) -> bool {
        let groups = groups(uid, gid);
        uid != UNMAPPED && self.with(role).iter().any(|member| member.includes(uid, &groups))
    }
}

/// Groups of a user whose process has this group.
fn groups(uid: u32, gid: u32) -> Vec<u32> {
    let mut groups = vec![gid];
    if let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) {
        groups.push(user.gid.as_raw());
        let listed =
            CString::new(user.name).ok().and_then(|name| getgrouplist(&name, user.gid).ok());
        groups.extend(listed.into_iter().flatten().map(Gid::as_raw));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roles(auditor: &[&str], operator: &[&str]) -> Roles {
        let all = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Roles { auditor: all(auditor), operator: all(operator), ..Roles::default() }
    }

    #[test]
    fn members_are_parsed_or_refused() {
        for text in ["user:alice", "group:audit-team", "user:1000", "group:0", "user:a.b@corp"] {
            assert_eq!(text.parse::<Member>().unwrap().to_string(), text);
        }
        for (text, fault) in [
            ("", IllegalMember::Form),
            ("alice", IllegalMember::Form),
            ("User:alice", IllegalMember::Form),
            ("user:", IllegalMember::Name),
            ("user:a b", IllegalMember::Name),
            ("group:a,b", IllegalMember::Name),
            ("user:a:b", IllegalMember::Name),
            ("user:99999999999", IllegalMember::Name),
            ("user:65534", IllegalMember::Unmapped),
            ("group:4294967295", IllegalMember::Unmapped),
        ] {
            assert_eq!(text.parse::<Member>(), Err(fault), "{text}");
        }
    }

    #[test]
    fn only_named_users_have_a_role() {
        let own = Uid::effective().as_raw();
        let none = Roles::default();
        assert_eq!(none.rights(0, 0), UserRights::OWNER);
        assert_eq!(none.rights(own, 1), UserRights::OWNER);
        assert_eq!(none.rights(own + 41, 0), UserRights::STRANGER);

        let some = roles(&["user:4001", "group:5001"], &["user:4002"]);
        let has = |uid, gid| {
            let rights = some.rights(uid, gid);
            assert!(!rights.owner);
            (rights.has(Role::Auditor), rights.has(Role::Operator))
        };
        assert_eq!(has(4001, 4001), (true, false));
        assert_eq!(has(4003, 5001), (true, false));
        assert_eq!(has(4002, 4002), (false, true));
        assert_eq!(has(4002, 5001), (true, true));
        // A user's number does not match a group's, nor the reverse.
        assert_eq!(has(5001, 4001), (false, false));
        assert_eq!(roles(&["user:surely-nobody-here"], &[]).rights(4001, 1), UserRights::STRANGER);
        // `nobody` is any user without a number.
        assert_eq!(roles(&["user:nobody"], &[]).rights(UNMAPPED, 1), UserRights::STRANGER);
    }

    #[test]
    fn groups_come_from_the_name_service() {
        // Root exists on every machine, and its group has a name.
        let name = Group::from_gid(Gid::from_raw(0)).unwrap().unwrap().name;
        let member: Member = format!("group:{name}").parse().unwrap();
        assert!(member.includes(0, &groups(0, 4711)));
        assert!(!member.includes(4711, &groups(4_000_001, 4711)));
    }
}
