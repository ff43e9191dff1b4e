//! A question as Cedar takes it: a request, and the few entities that matter to it.

use std::borrow::Cow;

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, PartialEntities,
    PartialEntityUid, PartialRequest, RestrictedExpression, Schema,
};
use serde_json::{Map, Value};

use super::{
    args::{self, Unshowable},
    load::Reads,
    request::{Action, Circumstances, Claims, Request, Resource, Subject},
};
use crate::{
    exchange::Transport,
    identity::{Principal, PrincipalKind},
    names::ServerName,
};

/// Why a question could not be put to Cedar. The texts hold nothing of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unaskable {
    #[error(transparent)]
    Unshowable(#[from] Unshowable),
    #[error("the {0} does not fit the policy schema")]
    Misfit(&'static str),
}

/// The schema's names, parsed once.
pub(super) struct Vocabulary {
    group: EntityTypeName,
    client: EntityTypeName,
    local: EntityTypeName,
    anonymous: EntityTypeName,
    proxy: EntityTypeName,
    server: EntityTypeName,
    tool: EntityTypeName,
    prompt: EntityTypeName,
    resource: EntityTypeName,
    template: EntityTypeName,
    args: EntityUid,
    /// In the order of [`Action::ALL`], each with its groups.
    actions: Vec<Entity>,
}

/// The uids of a question, and all of its entities but the arguments.
#[derive(Debug)]
pub(super) struct Frame {
    subject: EntityUid,
    action: EntityUid,
    resource: EntityUid,
    entities: Entities,
}

type Attributes = Vec<(String, RestrictedExpression)>;

fn text(value: impl Into<String>) -> RestrictedExpression {
    RestrictedExpression::new_string(value.into())
}

fn long(value: u64) -> RestrictedExpression {
    RestrictedExpression::new_long(i64::try_from(value).unwrap_or(i64::MAX))
}

fn entity(
    uid: EntityUid,
    attributes: Attributes,
    parents: Vec<EntityUid>,
) -> Result<Entity, Unaskable> {
    Entity::new(uid, attributes.into_iter().collect(), parents.into_iter().collect())
        .map_err(|_| Unaskable::Misfit("entity"))
}

impl Vocabulary {
    pub(super) fn new(schema: &Schema) -> Result<Self, Unaskable> {
        let name = |name: &str| {
            format!("Portcullis::{name}")
                .parse::<EntityTypeName>()
                .map_err(|_| Unaskable::Misfit("entity type"))
        };
        let action_type = name("Action")?;
        let known = schema.action_entities().map_err(|_| Unaskable::Misfit("action"))?;
        let actions = Action::ALL
            .iter()
            .map(|action| known.get(&uid(&action_type, action.as_str())).cloned())
            .collect::<Option<_>>()
            .ok_or(Unaskable::Misfit("action"))?;
        Ok(Self {
            group: name("Group")?,
            client: name("Client")?,
            local: name("Local")?,
            anonymous: name("Anonymous")?,
            proxy: name("Proxy")?,
            server: name("Server")?,
            tool: name("Tool")?,
            prompt: name("Prompt")?,
            resource: name("Resource")?,
            template: name("ResourceTemplate")?,
            args: uid(&name("Args")?, "args"),
            actions,
        })
    }

    /// The part of a question that does not depend on the call, checked against the schema.
    pub(super) fn frame(
        &self,
        subject: &Subject<'_>,
        action: Action,
        resource: &Resource<'_>,
        schema: &Schema,
    ) -> Result<Frame, Unaskable> {
        let action = self.action(action)?;
        let mut entities = vec![action.clone()];
        let subject = self.subject(subject, &mut entities)?;
        let resource = self.resource(resource, &mut entities)?;
        open(&subject, action, &resource, schema)?;
        let entities = Entities::from_entities(entities, None)
            .map_err(|_| Unaskable::Misfit("set of entities"))?;
        Ok(Frame { subject, action: action.uid(), resource, entities })
    }

    /// The whole question. What no policy reads stays out of it: building a datetime or an address
    /// costs more than a decision.
    pub(super) fn question<'f>(
        &self,
        frame: &'f Frame,
        request: &Request<'_>,
        reads: Reads,
    ) -> Result<(cedar_policy::Request, Cow<'f, Entities>), Unaskable> {
        let context = self.context(&request.circumstances, reads)?;
        let Frame { subject, action, resource, entities } = frame;
        // Not checked against the schema again: the frame was, and the context would lack what no
        // policy reads.
        let question = cedar_policy::Request::new(
            subject.clone(),
            action.clone(),
            resource.clone(),
            context,
            None,
        )
        .map_err(|_| Unaskable::Misfit("request"))?;
        if !reads.args {
            return Ok((question, Cow::Borrowed(entities)));
        }
        args::exact(request.written)?;
        let args = self.args(request.args)?;
        let entities = entities
            .clone()
            .add_entities([args], None)
            .map_err(|_| Unaskable::Misfit("set of entities"))?;
        Ok((question, Cow::Owned(entities)))
    }

    /// The question with its circumstances and arguments left open.
    pub(super) fn open_question(
        &self,
        subject: &Subject<'_>,
        action: Action,
        resource: &Resource<'_>,
        schema: &Schema,
    ) -> Result<(PartialRequest, PartialEntities), Unaskable> {
        let mut entities = Vec::new();
        let subject = self.subject(subject, &mut entities)?;
        let resource = self.resource(resource, &mut entities)?;
        let request = open(&subject, self.action(action)?, &resource, schema)?;
        let entities = Entities::from_entities(entities, None)
            .ok()
            .and_then(|entities| PartialEntities::from_concrete(entities, schema).ok())
            .ok_or(Unaskable::Misfit("set of entities"))?;
        Ok((request, entities))
    }

    fn action(&self, action: Action) -> Result<&Entity, Unaskable> {
        self.actions.get(action as usize).ok_or(Unaskable::Misfit("action"))
    }

    fn subject(
        &self,
        subject: &Subject<'_>,
        entities: &mut Vec<Entity>,
    ) -> Result<EntityUid, Unaskable> {
        match subject {
            Subject::Client(principal) => self.principal(principal, entities),
            Subject::Server(name) => self.server(name, entities),
        }
    }

    fn principal(
        &self,
        principal: &Principal,
        entities: &mut Vec<Entity>,
    ) -> Result<EntityUid, Unaskable> {
        let (kind, name) = match &principal.kind {
            PrincipalKind::Client(name) => (&self.client, name.as_str()),
            PrincipalKind::Local { user } => (&self.local, user.as_str()),
            PrincipalKind::Anonymous => (&self.anonymous, "anonymous"),
        };
        let groups: Vec<_> =
            principal.groups.iter().map(|group| uid(&self.group, group.as_str())).collect();
        entities.extend(groups.iter().cloned().map(Entity::with_uid));
        let attributes = vec![
            ("name".to_owned(), text(name)),
            ("verified".to_owned(), RestrictedExpression::new_bool(principal.verified)),
        ];
        let uid = uid(kind, name);
        entities.push(entity(uid.clone(), attributes, groups)?);
        Ok(uid)
    }

    fn server(
        &self,
        name: &ServerName,
        entities: &mut Vec<Entity>,
    ) -> Result<EntityUid, Unaskable> {
        let uid = uid(&self.server, name.as_str());
        let attributes = vec![("name".to_owned(), text(name.as_str()))];
        entities.push(entity(uid.clone(), attributes, Vec::new())?);
        Ok(uid)
    }

    fn resource(
        &self,
        resource: &Resource<'_>,
        entities: &mut Vec<Entity>,
    ) -> Result<EntityUid, Unaskable> {
        let (kind, server, id, attributes) = match *resource {
            Resource::Proxy => {
                let uid = uid(&self.proxy, "portcullis");
                entities.push(Entity::with_uid(uid.clone()));
                return Ok(uid);
            }
            Resource::Server(name) => return self.server(name, entities),
            Resource::Client(principal) => return self.principal(principal, entities),
            Resource::Tool { server, name, claims } => {
                let attributes =
                    vec![("name".to_owned(), text(name)), ("claims".to_owned(), record(claims)?)];
                (&self.tool, server, name, attributes)
            }
            Resource::Prompt { server, name } => {
                (&self.prompt, server, name, vec![("name".to_owned(), text(name))])
            }
            Resource::Resource { server, uri } => (&self.resource, server, uri, located(uri)),
            Resource::Template { server, uri } => (&self.template, server, uri, located(uri)),
        };
        let parent = self.server(server, entities)?;
        // A server's name holds no `/`, so the first one ends it.
        let uid = uid(kind, &format!("{server}/{id}"));
        entities.push(entity(uid.clone(), attributes, vec![parent])?);
        Ok(uid)
    }

    fn args(&self, args: Option<&Map<String, Value>>) -> Result<Entity, Unaskable> {
        let leaves = args.map(args::leaves).transpose()?.unwrap_or_default();
        let size = leaves.iter().map(|(_, value)| value.len()).sum::<usize>();
        let keys = args.into_iter().flat_map(Map::keys).map(text);
        let attributes = [
            ("keys".to_owned(), RestrictedExpression::new_set(keys)),
            ("leaves".to_owned(), long(leaves.len() as u64)),
            ("size".to_owned(), long(size as u64)),
        ];
        let tags = leaves.into_iter().map(|(pointer, value)| (pointer, text(value)));
        Entity::new_with_tags(self.args.clone(), attributes, [], tags)
            .map_err(|_| Unaskable::Misfit("set of arguments"))
    }

    fn context(
        &self,
        circumstances: &Circumstances<'_>,
        reads: Reads,
    ) -> Result<Context, Unaskable> {
        let transport = match circumstances.transport {
            Transport::Http => "http",
            Transport::Unix => "unix",
            Transport::Stdio => "stdio",
            Transport::Cli => "cli",
        };
        let mut pairs = vec![
            ("method".to_owned(), text(circumstances.method)),
            ("transport".to_owned(), text(transport)),
            ("revision".to_owned(), text(circumstances.revision.as_str())),
            ("session_calls".to_owned(), long(circumstances.session_calls)),
            ("args".to_owned(), RestrictedExpression::new_entity_uid(self.args.clone())),
        ];
        if reads.now {
            let now = circumstances.now.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
            pairs.push(("now".to_owned(), RestrictedExpression::new_datetime(now)));
        }
        if let Some(address) = circumstances.source_ip.filter(|_| reads.source_ip) {
            let address = RestrictedExpression::new_ip(address.to_canonical().to_string());
            pairs.push(("source_ip".to_owned(), address));
        }
        Context::from_pairs(pairs).map_err(|_| Unaskable::Misfit("context"))
    }
}

/// A request with its context left open. Fails where the schema has no such request.
fn open(
    subject: &EntityUid,
    action: &Entity,
    resource: &EntityUid,
    schema: &Schema,
) -> Result<PartialRequest, Unaskable> {
    PartialRequest::new(
        PartialEntityUid::from_concrete(subject.clone()),
        action.uid(),
        PartialEntityUid::from_concrete(resource.clone()),
        None,
        schema,
    )
    .map_err(|_| Unaskable::Misfit("request"))
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

fn located(uri: &str) -> Attributes {
    let scheme = uri.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
    vec![("uri".to_owned(), text(uri)), ("scheme".to_owned(), text(scheme))]
}

fn record(claims: Claims) -> Result<RestrictedExpression, Unaskable> {
    let fields = [
        ("read_only", claims.read_only),
        ("destructive", claims.destructive),
        ("idempotent", claims.idempotent),
        ("open_world", claims.open_world),
    ];
    RestrictedExpression::new_record(
        fields.map(|(name, value)| (name.to_owned(), RestrictedExpression::new_bool(value))),
    )
    .map_err(|_| Unaskable::Misfit("set of claims"))
}
