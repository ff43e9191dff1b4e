//! A question as Cedar takes it: a request, and the few entities that matter to it.

use std::borrow::Cow;

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, PartialEntities,
    PartialEntityUid, PartialRequest, RestrictedExpression, Schema,
};
use serde_json::{Map, Value};

use super::{
    args::{self, Leaf, Unshowable},
    load::Reads,
    located,
    request::{Action, Circumstances, Claims, Program, Request, Resource, Subject},
};
use crate::{
    exchange::{Revision, Transport},
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
    plugin: EntityTypeName,
    program: EntityTypeName,
    secret: EntityTypeName,
    host: EntityTypeName,
    grant: EntityTypeName,
    args: EntityUid,
    paths: EntityUid,
    urls: EntityUid,
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

impl Frame {
    /// Who asks, for what, of what.
    pub(super) fn uids(&self) -> [&EntityUid; 3] {
        [&self.subject, &self.action, &self.resource]
    }

    pub(super) fn entities(&self) -> &Entities {
        &self.entities
    }
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
            plugin: name("Plugin")?,
            program: name("Program")?,
            secret: name("Secret")?,
            host: name("Host")?,
            grant: name("Grant")?,
            args: uid(&name("Args")?, "args"),
            paths: uid(&name("Paths")?, "paths"),
            urls: uid(&name("Urls")?, "urls"),
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
        if !reads.arguments() {
            return Ok((question, Cow::Borrowed(entities)));
        }
        args::exact(request.written)?;
        let leaves = request.args.map(args::leaves).transpose()?.unwrap_or_default();
        let mut shown = Vec::new();
        if reads.paths {
            let paths = leaves
                .iter()
                .filter_map(|leaf| Some((leaf.pointer.clone(), text(located::path(leaf.text()?)))));
            shown.push(tagged(&self.paths, paths)?);
        }
        if reads.urls {
            let urls = leaves
                .iter()
                .filter_map(|leaf| Some((leaf.pointer.clone(), located::Url::read(leaf.text()?)?)))
                .map(|(pointer, url)| Ok((pointer, web(url)?)))
                .collect::<Result<Vec<_>, Unaskable>>()?;
            shown.push(tagged(&self.urls, urls)?);
        }
        if reads.args {
            shown.push(self.args(request.args, leaves)?);
        }
        let entities = entities
            .clone()
            .add_entities(shown, None)
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
            Subject::Plugin(name) => named(&self.plugin, name, name, entities),
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
            Resource::Resource { server, uri } => (&self.resource, server, uri, place(uri)?),
            // A template is no URI yet.
            Resource::Template { server, uri } => (&self.template, server, uri, scheme(uri)),
            Resource::Secret { server, name, source, header } => {
                let attributes = vec![
                    ("name".to_owned(), text(name)),
                    ("source".to_owned(), text(source)),
                    ("header".to_owned(), RestrictedExpression::new_bool(header)),
                ];
                (&self.secret, server, name, attributes)
            }
            Resource::Program(program) => return self.program(program, entities),
            Resource::Host { name, port } => {
                let uid = uid(&self.host, &format!("{name}:{port}"));
                let attributes =
                    vec![("name".to_owned(), text(name)), ("port".to_owned(), long(port.into()))];
                entities.push(entity(uid.clone(), attributes, Vec::new())?);
                return Ok(uid);
            }
            Resource::Grant(name) => return named(&self.grant, name, name, entities),
        };
        let parent = self.server(server, entities)?;
        // A server's name holds no `/`, so the first one ends it.
        let uid = uid(kind, &format!("{server}/{id}"));
        entities.push(entity(uid.clone(), attributes, vec![parent])?);
        Ok(uid)
    }

    fn program(
        &self,
        program: &Program,
        entities: &mut Vec<Entity>,
    ) -> Result<EntityUid, Unaskable> {
        let uid = uid(&self.program, &program.name);
        let deviations = program.deviations.iter().map(text);
        let mut attributes = vec![
            ("runtime".to_owned(), text(program.runtime)),
            ("name".to_owned(), text(&program.name)),
            ("deviations".to_owned(), RestrictedExpression::new_set(deviations)),
        ];
        attributes.extend(program.digest.iter().map(|digest| ("digest".to_owned(), text(digest))));
        entities.push(entity(uid.clone(), attributes, Vec::new())?);
        Ok(uid)
    }

    fn args(
        &self,
        args: Option<&Map<String, Value>>,
        leaves: Vec<Leaf>,
    ) -> Result<Entity, Unaskable> {
        let size = leaves.iter().map(|leaf| leaf.value.len()).sum::<usize>();
        let keys = args.into_iter().flat_map(Map::keys).map(text);
        let attributes = [
            ("keys".to_owned(), RestrictedExpression::new_set(keys)),
            ("leaves".to_owned(), long(leaves.len() as u64)),
            ("size".to_owned(), long(size as u64)),
        ];
        let tags = leaves.into_iter().map(|leaf| (leaf.pointer, text(leaf.value)));
        Entity::new_with_tags(self.args.clone(), attributes, [], tags)
            .map_err(|_| Unaskable::Misfit("set of arguments"))
    }

    fn context(
        &self,
        circumstances: &Circumstances<'_>,
        reads: Reads,
    ) -> Result<Context, Unaskable> {
        let mut pairs = vec![
            ("method".to_owned(), text(circumstances.method)),
            ("transport".to_owned(), text(circumstances.transport.map_or("", transport))),
            ("revision".to_owned(), text(circumstances.revision.map_or("", Revision::as_str))),
            ("session_calls".to_owned(), long(circumstances.session_calls)),
            ("args".to_owned(), RestrictedExpression::new_entity_uid(self.args.clone())),
            ("paths".to_owned(), RestrictedExpression::new_entity_uid(self.paths.clone())),
            ("urls".to_owned(), RestrictedExpression::new_entity_uid(self.urls.clone())),
        ];
        if reads.labels {
            let labels = RestrictedExpression::new_set(circumstances.labels.iter().map(text));
            pairs.push(("labels".to_owned(), labels));
        }
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

fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Http => "http",
        Transport::Unix => "unix",
        Transport::Stdio => "stdio",
        Transport::Cli => "cli",
    }
}

/// An entity that has a name and nothing else.
fn named(
    kind: &EntityTypeName,
    id: &str,
    name: &str,
    entities: &mut Vec<Entity>,
) -> Result<EntityUid, Unaskable> {
    let uid = uid(kind, id);
    entities.push(entity(uid.clone(), vec![("name".to_owned(), text(name))], Vec::new())?);
    Ok(uid)
}

fn tagged(
    uid: &EntityUid,
    tags: impl IntoIterator<Item = (String, RestrictedExpression)>,
) -> Result<Entity, Unaskable> {
    Entity::new_with_tags(uid.clone(), [], [], tags)
        .map_err(|_| Unaskable::Misfit("set of arguments"))
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

fn scheme(uri: &str) -> Attributes {
    let scheme = uri.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
    vec![("uri".to_owned(), text(uri)), ("scheme".to_owned(), text(scheme))]
}

/// What a URI says of where something is.
fn place(uri: &str) -> Result<Attributes, Unaskable> {
    let mut attributes = scheme(uri);
    if let Some(path) = located::file(uri) {
        attributes.push(("path".to_owned(), text(path)));
    }
    if let Some(url) = located::Url::read(uri) {
        attributes.push(("url".to_owned(), web(url)?));
    }
    Ok(attributes)
}

fn web(url: located::Url) -> Result<RestrictedExpression, Unaskable> {
    let bool = RestrictedExpression::new_bool;
    let fields = [
        ("href", text(url.href)),
        ("scheme", text(url.scheme)),
        ("host", text(url.host)),
        ("port", long(url.port.into())),
        ("path", text(url.path)),
        ("login", bool(url.login)),
        ("verbatim", bool(url.verbatim)),
    ];
    RestrictedExpression::new_record(fields.map(|(name, value)| (name.to_owned(), value)))
        .map_err(|_| Unaskable::Misfit("URL"))
}

fn record(claims: Claims) -> Result<RestrictedExpression, Unaskable> {
    let bool = RestrictedExpression::new_bool;
    let fields = [
        ("read_only", bool(claims.read_only)),
        ("destructive", bool(claims.destructive)),
        ("idempotent", bool(claims.idempotent)),
        ("open_world", bool(claims.open_world)),
        ("by", text(claims.by.as_str())),
    ];
    RestrictedExpression::new_record(fields.map(|(name, value)| (name.to_owned(), value)))
        .map_err(|_| Unaskable::Misfit("set of claims"))
}
