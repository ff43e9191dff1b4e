//! Options that select the principal of new policies.

use portcullis_policy_tools::{PolicyPrincipal, UserName};
use portcullis_protocol::names::{ClientName, Group};

/// The principal of new policies: a group, a client, or a user of this machine.
#[derive(Debug, clap::Args)]
pub(super) struct PrincipalArgs {
    /// Apply the policy to the clients of this group. Default of `add`: `agents`
    #[arg(long, value_name = "GROUP", group = "principal")]
    pub group: Option<Group>,
    /// Apply the policy to this client
    #[arg(long, value_name = "CLIENT", group = "principal")]
    client: Option<ClientName>,
    /// Apply the policy to this user, who runs the proxy and uses `portcullis tools` or `connect`
    #[arg(long, value_name = "USER", group = "principal")]
    local_user: Option<UserName>,
}

impl PrincipalArgs {
    /// The principal, if one is given.
    pub fn principal(&self) -> Option<PolicyPrincipal> {
        let group = self.group.clone().map(PolicyPrincipal::Group);
        let client = self.client.clone().map(PolicyPrincipal::Client);
        let local_user = self.local_user.clone().map(PolicyPrincipal::LocalUser);
        group.or(client).or(local_user)
    }
}
