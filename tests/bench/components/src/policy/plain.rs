//! The same question put to plain Cedar.

use anyhow::Context as _;
use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityUid, PolicySet, RestrictedExpression,
    Schema, ValidationMode, Validator,
};
use portcullis_policy::{Request, SCHEMA};

/// A set of policies, and what of the question is the same for all calls.
pub struct Plain {
    policies: PolicySet,
    uids: [EntityUid; 3],
    args: EntityUid,
    entities: Entities,
    authorizer: Authorizer,
}

pub struct Question {
    request: cedar_policy::Request,
    entities: Entities,
}

fn text(text: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(text.to_owned())
}

impl Plain {
    pub fn new(policies: &str) -> anyhow::Result<Self> {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA)?;
        let policies: PolicySet = policies.parse()?;
        let result = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
        anyhow::ensure!(result.validation_passed(), "{result}");
        let uid = |text: &str| anyhow::Ok(format!("Portcullis::{text}").parse::<EntityUid>()?);
        let uids = [
            uid(r#"Client::"ci""#)?,
            uid(r#"Action::"call_tool""#)?,
            uid(r#"Tool::"git/tool_7""#)?,
        ];
        let groups = [uid(r#"Group::"bots""#)?, uid(r#"Group::"eu""#)?];
        let server = uid(r#"Server::"git""#)?;
        let claims = [
            ("read_only", true),
            ("destructive", false),
            ("idempotent", false),
            ("open_world", true),
        ];
        let claims = claims.map(|(name, on)| (name.to_owned(), RestrictedExpression::new_bool(on)));
        let verified = ("verified".to_owned(), RestrictedExpression::new_bool(true));
        let named = |name: &str| ("name".to_owned(), text(name));
        let claims = ("claims".to_owned(), RestrictedExpression::new_record(claims)?);
        let actions = schema.action_entities()?;
        let entities = Entities::from_entities(
            [
                actions.get(&uids[1]).context("the action")?.clone(),
                Entity::with_uid(groups[0].clone()),
                Entity::with_uid(groups[1].clone()),
                Entity::new(
                    uids[0].clone(),
                    [named("ci"), verified].into(),
                    groups.into_iter().collect(),
                )?,
                Entity::new(server.clone(), [named("git")].into(), [].into())?,
                Entity::new(uids[2].clone(), [named("tool_7"), claims].into(), [server].into())?,
            ],
            None,
        )?;
        let args = uid(r#"Args::"args""#)?;
        Ok(Self { policies, uids, args, entities, authorizer: Authorizer::new() })
    }

    /// The request with its circumstances, and the entities with the arguments.
    pub fn question(&self, request: &Request<'_>) -> anyhow::Result<Question> {
        let Request { circumstances, args, .. } = request;
        let address = circumstances.source_ip.context("the address")?.to_string();
        let now = circumstances.now.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
        let calls = i64::try_from(circumstances.session_calls)?;
        let context = Context::from_pairs([
            ("method".to_owned(), text(circumstances.method)),
            ("transport".to_owned(), text("http")),
            ("revision".to_owned(), text(circumstances.revision.context("the revision")?.as_str())),
            ("session_calls".to_owned(), RestrictedExpression::new_long(calls)),
            ("args".to_owned(), RestrictedExpression::new_entity_uid(self.args.clone())),
            ("now".to_owned(), RestrictedExpression::new_datetime(now)),
            ("source_ip".to_owned(), RestrictedExpression::new_ip(address)),
        ])?;
        let [principal, action, resource] = self.uids.clone();
        let request = cedar_policy::Request::new(principal, action, resource, context, None)?;
        let args = args.context("the arguments")?.iter().map(|(key, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            (format!("/{key}"), text(&value))
        });
        let args = Entity::new_with_tags(self.args.clone(), [], [], args)?;
        Ok(Question { request, entities: self.entities.clone().add_entities([args], None)? })
    }

    pub fn decide(&self, question: &Question) -> bool {
        let Question { request, entities } = question;
        let response = self.authorizer.is_authorized(request, &self.policies, entities);
        response.decision() == Decision::Allow
    }
}
