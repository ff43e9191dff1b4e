//! Requests in Cedar's form: a request, and the few entities that matter to it.

use std::collections::{HashMap, HashSet};

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, PartialEntities,
    PartialEntityUid, PartialRequest, RestrictedExpression, Schema,
};
use cedar_policy_core::ast::{RestrictedExpr, Value};

use super::{
    about::About,
    conditions::ContextUsage,
    context::{self, Calls, CoreRequest, Uids},
    normalize,
    request::{Action, DeliveredAs, Holder, Program, Request, Resource, Subject},
    request_error::RequestError,
    typed::Typed,
};
use portcullis_protocol::arguments;
use portcullis_protocol::claims::Claims;
use portcullis_protocol::{
    identity::{Principal, PrincipalKind},
    names::ServerName,
};

/// Names of the schema, parsed once.
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
    calls: Calls,
    /// In the order of [`Action::ALL`].
    actions: Vec<KnownAction>,
    typed: Typed,
    /// By server and tool.
    own_actions: HashMap<ServerName, HashMap<String, KnownAction>>,
    own_uids: HashSet<EntityUid>,
}

/// An action and the groups that contain it.
struct KnownAction {
    entity: Entity,
    uid: EntityUid,
    groups: HashSet<EntityUid>,
}

/// The part of a request that depends neither on the call nor on the name of an item of a server.
pub(super) struct Base {
    pub(super) subject: EntityUid,
    pub(super) action: EntityUid,
    /// Whether `action` is a tool's own action.
    pub(super) own: bool,
    /// The server that offers the resource, if it is an item of a server.
    pub(super) holder: Option<EntityUid>,
    /// All entities except the item of `holder` and the arguments.
    pub(super) entities: Entities,
}

/// The part of a request that does not depend on the call.
pub(super) struct Frame {
    uids: [EntityUid; 3],
    own: bool,
    entities: Entities,
}

impl Frame {
    /// Principal, action and resource.
    pub(super) fn uids(&self) -> &[EntityUid; 3] {
        &self.uids
    }

    pub(super) fn entities(&self) -> &Entities {
        &self.entities
    }

    /// Whether the action is a tool's own action.
    pub(super) fn own(&self) -> bool {
        self.own
    }
}

/// The bit for the own actions of all tools, in the bits of actions.
pub(super) const OWN: u32 = 1 << 31;

type Attributes = Vec<(String, RestrictedExpression)>;

fn text(value: impl Into<String>) -> RestrictedExpression {
    RestrictedExpression::new_string(value.into())
}

fn long(value: u64) -> RestrictedExpression {
    RestrictedExpression::new_long(i64::try_from(value).unwrap_or(i64::MAX))
}

fn nothing() -> Result<RestrictedExpression, RequestError> {
    RestrictedExpression::new_record([]).map_err(|_| RequestError::SchemaMismatch("context"))
}

fn entity(
    uid: EntityUid,
    attributes: Attributes,
    parents: Vec<EntityUid>,
) -> Result<Entity, RequestError> {
    Entity::new(uid, attributes.into_iter().collect(), parents.into_iter().collect())
        .map_err(|_| RequestError::SchemaMismatch("entity"))
}

impl Vocabulary {
    pub(super) fn new(schema: &Schema, typed: Typed) -> Result<Self, RequestError> {
        let name = |name: &str| {
            format!("Portcullis::{name}")
                .parse::<EntityTypeName>()
                .map_err(|_| RequestError::SchemaMismatch("entity type"))
        };
        let action_type = name("Action")?;
        let known = schema.action_entities().map_err(|_| RequestError::SchemaMismatch("action"))?;
        let find = |id: &str| {
            let uid = uid(&action_type, id);
            let groups = known.ancestors(&uid)?.cloned().collect();
            Some(KnownAction { entity: known.get(&uid)?.clone(), uid, groups })
        };
        let actions = Action::ALL
            .iter()
            .map(|action| find(action.as_str()))
            .collect::<Option<_>>()
            .ok_or(RequestError::SchemaMismatch("action"))?;
        let mut own_actions: HashMap<ServerName, HashMap<String, KnownAction>> = HashMap::new();
        let mut own_uids = HashSet::new();
        for (server, tool) in typed.tools() {
            let found =
                find(&format!("{server}/{tool}")).ok_or(RequestError::SchemaMismatch("action"))?;
            own_uids.insert(found.uid.clone());
            own_actions.entry(server.clone()).or_default().insert(tool.to_owned(), found);
        }
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
            calls: Calls::new([
                uid(&name("Args")?, "args"),
                uid(&name("Paths")?, "paths"),
                uid(&name("Urls")?, "urls"),
                uid(&name("Lists")?, "lists"),
            ])?,
            actions,
            typed,
            own_actions,
            own_uids,
        })
    }

    /// The bit of an entity type of principals or resources, or 0 for any other type.
    pub(super) fn bit(&self, kind: &EntityTypeName) -> u16 {
        let kinds = [
            &self.client,
            &self.local,
            &self.anonymous,
            &self.proxy,
            &self.server,
            &self.tool,
            &self.prompt,
            &self.resource,
            &self.template,
            &self.plugin,
            &self.program,
            &self.secret,
            &self.host,
            &self.grant,
        ];
        kinds.iter().position(|known| *known == kind).map_or(0, |at| 1 << at)
    }

    /// The bits of the actions for which `wanted` is true, given uid and groups, by position in
    /// [`Action::ALL`]. [`OWN`] is set if `wanted` is true for the group of all tools' own actions.
    pub(super) fn actions_of(
        &self,
        wanted: impl Fn(&EntityUid, &HashSet<EntityUid>) -> bool,
    ) -> u32 {
        let bits = self.actions.iter().enumerate();
        let bits = bits
            .filter(|(_, action)| wanted(&action.uid, &action.groups))
            .fold(0, |bits, (at, _)| bits | 1 << at);
        // All own actions are in the same groups. Their uids are checked for each tool separately.
        let own = self.own_actions.values().flat_map(HashMap::values).next();
        let all = own.is_some_and(|own| wanted(&self.args, &own.groups));
        if all { bits | OWN } else { bits }
    }

    /// Whether it is the own action of a tool.
    pub(super) fn is_own_action(&self, uid: &EntityUid) -> bool {
        self.own_uids.contains(uid)
    }

    /// Whether the request is also decided under its own action: the call of a typed tool.
    pub(super) fn has_own_action(&self, action: Action, resource: &Resource<'_>) -> bool {
        !self.own_uids.is_empty() && action == Action::CallTool && self.own(resource).is_some()
    }

    /// Whether any tool has its own action.
    pub(super) fn has_own_actions(&self) -> bool {
        !self.own_uids.is_empty()
    }

    fn own(&self, resource: &Resource<'_>) -> Option<&KnownAction> {
        match *resource {
            Resource::Tool { server, name, .. } => self.own_actions.get(server)?.get(name),
            _ => None,
        }
    }

    pub(super) fn typed(&self) -> &Typed {
        &self.typed
    }

    /// The arguments of a call as the typed input of its tool.
    ///
    /// # Errors
    /// If they do not fit its type.
    pub(super) fn input(
        &self,
        request: &Request<'_>,
    ) -> Result<RestrictedExpression, RequestError> {
        let Resource::Tool { server, name, .. } = request.resource else {
            return Err(RequestError::SchemaMismatch("action"));
        };
        arguments::exact(request.written)?;
        Ok(self.typed.input(server, name, request.args)?)
    }

    /// The part of a request that depends neither on the call nor on names of items of a server,
    /// checked against the schema.
    pub(super) fn base(&self, about: About<'_>, schema: &Schema) -> Result<Base, RequestError> {
        let About { subject, action, resource, own } = &about;
        let action = if *own { self.own(resource) } else { self.actions.get(*action as usize) };
        let action = action.ok_or(RequestError::SchemaMismatch("action"))?;
        let mut entities = vec![action.entity.clone()];
        let subject = self.subject(subject, &mut entities)?;
        let holder = match holder(resource) {
            Some(server) => Some(self.server(server, &mut entities)?),
            None => {
                entities.extend(self.alone(resource)?);
                None
            }
        };
        open(&subject, &action.uid, &self.resource_uid(resource), schema)?;
        let entities = Entities::from_entities(entities, None)
            .map_err(|_| RequestError::SchemaMismatch("set of entities"))?;
        Ok(Base { subject, action: action.uid.clone(), own: *own, holder, entities })
    }

    /// A request without its circumstances and arguments.
    pub(super) fn frame(&self, about: About<'_>, schema: &Schema) -> Result<Frame, RequestError> {
        let base = self.base(about, schema)?;
        let entities = self.entities(&base, &about.resource)?;
        let uids = [base.subject, base.action, self.resource_uid(&about.resource)];
        Ok(Frame { uids, own: base.own, entities })
    }

    /// All entities of a request except the arguments.
    pub(super) fn entities(
        &self,
        base: &Base,
        resource: &Resource<'_>,
    ) -> Result<Entities, RequestError> {
        let entities = base.entities.clone();
        match &base.holder {
            Some(server) => entities
                .add_entities([self.item_entity(resource, server)?], None)
                .map_err(|_| RequestError::SchemaMismatch("set of entities")),
            None => Ok(entities),
        }
    }

    /// A request without its circumstances and arguments, for policies that do not read them.
    pub(super) fn before_the_call(
        &self,
        base: &Base,
        resource: &Resource<'_>,
    ) -> Result<(cedar_policy::Request, Entities), RequestError> {
        let uids = [base.subject.clone(), base.action.clone(), self.resource_uid(resource)];
        // Whether there is typed input does not depend on the call.
        let context = base.own.then(nothing).transpose()?.map(|input| ("input".to_owned(), input));
        let context =
            Context::from_pairs(context).map_err(|_| RequestError::SchemaMismatch("context"))?;
        Ok((core_request(uids, context)?, self.entities(base, resource)?))
    }

    /// The complete request. If `own` is set, the action is the tool's own one. Data that no policy
    /// reads is left out.
    pub(super) fn question(
        &self,
        uids: Uids,
        own: bool,
        entities: Option<&context::Entities>,
        request: &Request<'_>,
        reads: ContextUsage,
    ) -> Result<(CoreRequest, context::Entities), RequestError> {
        let input = match own {
            true if reads.has(ContextUsage::INPUT) => Some(context::value(&self.input(request)?)?),
            true => Some(Value::empty_record(None)),
            false => None,
        };
        self.calls.question(uids, input, entities, request, reads)
    }

    /// The request with unknown circumstances and arguments, for partial evaluation.
    pub(super) fn open_question(
        &self,
        base: &Base,
        resource: &Resource<'_>,
        entities: &Entities,
        schema: &Schema,
    ) -> Result<(PartialRequest, PartialEntities), RequestError> {
        let request = open(&base.subject, &base.action, &self.resource_uid(resource), schema)?;
        let entities = PartialEntities::from_concrete(entities.clone(), schema)
            .map_err(|_| RequestError::SchemaMismatch("set of entities"))?;
        Ok((request, entities))
    }

    fn subject(
        &self,
        subject: &Subject<'_>,
        entities: &mut Vec<Entity>,
    ) -> Result<EntityUid, RequestError> {
        match subject {
            Subject::Client(principal) => self.principal(principal, entities),
            Subject::Server(name) => self.server(name, entities),
            Subject::Plugin(name) => self.plugin(name, entities),
        }
    }

    fn principal(
        &self,
        principal: &Principal,
        entities: &mut Vec<Entity>,
    ) -> Result<EntityUid, RequestError> {
        let (kind, name) = self.named(principal);
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

    fn named<'p>(&self, principal: &'p Principal) -> (&EntityTypeName, &'p str) {
        match &principal.kind {
            PrincipalKind::Client(name) => (&self.client, name.as_str()),
            PrincipalKind::Local { user } => (&self.local, user.as_str()),
            PrincipalKind::Anonymous => (&self.anonymous, "anonymous"),
        }
    }

    fn server(
        &self,
        name: &ServerName,
        entities: &mut Vec<Entity>,
    ) -> Result<EntityUid, RequestError> {
        let uid = uid(&self.server, name.as_str());
        let attributes = vec![("name".to_owned(), text(name.as_str()))];
        entities.push(entity(uid.clone(), attributes, Vec::new())?);
        Ok(uid)
    }

    fn plugin(&self, name: &str, entities: &mut Vec<Entity>) -> Result<EntityUid, RequestError> {
        let uid = uid(&self.plugin, name);
        let attributes = vec![("name".to_owned(), text(name))];
        entities.push(entity(uid.clone(), attributes, Vec::new())?);
        Ok(uid)
    }

    pub(super) fn resource_uid(&self, resource: &Resource<'_>) -> EntityUid {
        let (kind, server, id) = match *resource {
            Resource::Proxy => return uid(&self.proxy, "portcullis"),
            Resource::Server(name) => return uid(&self.server, name.as_str()),
            Resource::Client(principal) => {
                let (kind, name) = self.named(principal);
                return uid(kind, name);
            }
            Resource::Tool { server, name, .. } => (&self.tool, server, name),
            Resource::Prompt { server, name } => (&self.prompt, server, name),
            Resource::Resource { server, uri } => (&self.resource, server, uri),
            Resource::Template { server, uri } => (&self.template, server, uri),
            Resource::Secret { holder, name, .. } => {
                return uid(&self.secret, &format!("{holder}/{name}"));
            }
            Resource::Program(program) => return uid(&self.program, &program.name),
            Resource::Host { name, port } => return uid(&self.host, &format!("{name}:{port}")),
            Resource::Grant(name) => return uid(&self.grant, name),
        };
        // The name of a server never contains `/`, so the first one ends it.
        uid(kind, &format!("{server}/{id}"))
    }

    /// The entities of a resource that is not an item of a server.
    fn alone(&self, resource: &Resource<'_>) -> Result<Vec<Entity>, RequestError> {
        let mut entities = Vec::new();
        let mut parents = Vec::new();
        let attributes = match *resource {
            Resource::Server(name) => {
                self.server(name, &mut entities)?;
                return Ok(entities);
            }
            Resource::Client(principal) => {
                self.principal(principal, &mut entities)?;
                return Ok(entities);
            }
            Resource::Program(program) => about(program),
            Resource::Secret { holder, name, source, delivery, client } => {
                parents.push(match holder {
                    Holder::Server(server) => self.server(server, &mut entities)?,
                    Holder::Plugin(plugin) => self.plugin(plugin, &mut entities)?,
                });
                let header = RestrictedExpression::new_bool(delivery == DeliveredAs::Header);
                let mut attributes = vec![
                    ("name".to_owned(), text(name)),
                    ("source".to_owned(), text(source)),
                    ("delivery".to_owned(), text(delivery.as_str())),
                    ("header".to_owned(), header),
                ];
                attributes.extend(client.map(|client| ("client".to_owned(), text(client))));
                attributes
            }
            Resource::Host { name, port } => {
                vec![("name".to_owned(), text(name)), ("port".to_owned(), long(port.into()))]
            }
            Resource::Grant(name) => vec![("name".to_owned(), text(name))],
            _ => Vec::new(),
        };
        entities.push(entity(self.resource_uid(resource), attributes, parents)?);
        Ok(entities)
    }

    /// The entity of an item of a server.
    fn item_entity(
        &self,
        resource: &Resource<'_>,
        server: &EntityUid,
    ) -> Result<Entity, RequestError> {
        let attributes = match *resource {
            Resource::Tool { name, claims, .. } => {
                vec![("name".to_owned(), text(name)), ("claims".to_owned(), record(claims)?)]
            }
            Resource::Prompt { name, .. } => vec![("name".to_owned(), text(name))],
            Resource::Resource { uri, .. } => uri_attributes(uri)?,
            // A template is not a URI, so only its scheme is read.
            Resource::Template { uri, .. } => scheme(uri),
            _ => Vec::new(),
        };
        entity(self.resource_uid(resource), attributes, vec![server.clone()])
    }
}

/// The server that offers the resource.
fn holder<'a>(resource: &Resource<'a>) -> Option<&'a ServerName> {
    match *resource {
        Resource::Tool { server, .. }
        | Resource::Prompt { server, .. }
        | Resource::Resource { server, .. }
        | Resource::Template { server, .. } => Some(server),
        _ => None,
    }
}

fn about(program: &Program) -> Attributes {
    let set = |all: &[String]| RestrictedExpression::new_set(all.iter().map(text));
    let signed = RestrictedExpression::new_bool(!program.signers.is_empty());
    // The two keys differ, so this cannot fail.
    let attested = program.attested.iter().filter_map(|one| {
        let pairs = [("by".to_owned(), text(&one.by)), ("type".to_owned(), text(&one.of_type))];
        RestrictedExpression::new_record(pairs).ok()
    });
    let mut attributes = vec![
        ("runtime".to_owned(), text(program.runtime)),
        ("name".to_owned(), text(&program.name)),
        ("deviations".to_owned(), set(&program.deviations)),
        ("signed".to_owned(), signed),
        ("signers".to_owned(), set(&program.signers)),
        ("attested".to_owned(), RestrictedExpression::new_set(attested)),
    ];
    attributes.extend(program.digest.iter().map(|digest| ("digest".to_owned(), text(digest))));
    attributes
}

fn core_request(
    [subject, action, resource]: [EntityUid; 3],
    context: Context,
) -> Result<cedar_policy::Request, RequestError> {
    cedar_policy::Request::new(subject, action, resource, context, None)
        .map_err(|_| RequestError::SchemaMismatch("request"))
}

/// A request with an unknown context. Fails if the schema does not have such a request.
fn open(
    subject: &EntityUid,
    action: &EntityUid,
    resource: &EntityUid,
    schema: &Schema,
) -> Result<PartialRequest, RequestError> {
    PartialRequest::new(
        PartialEntityUid::from_concrete(subject.clone()),
        action.clone(),
        PartialEntityUid::from_concrete(resource.clone()),
        None,
        schema,
    )
    .map_err(|_| RequestError::SchemaMismatch("request"))
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

fn scheme(uri: &str) -> Attributes {
    let scheme = uri.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
    vec![("uri".to_owned(), text(uri)), ("scheme".to_owned(), text(scheme))]
}

/// The attributes of a URI.
fn uri_attributes(uri: &str) -> Result<Attributes, RequestError> {
    let mut attributes = scheme(uri);
    if let Some(path) = normalize::file(uri) {
        attributes.push(("path".to_owned(), text(path?)));
    }
    if let Some(url) = normalize::Url::read(uri) {
        attributes.push(("url".to_owned(), RestrictedExpr::from(context::web(url)).into()));
    }
    Ok(attributes)
}

fn record(claims: Claims) -> Result<RestrictedExpression, RequestError> {
    let bool = RestrictedExpression::new_bool;
    let fields = [
        ("read_only", bool(claims.read_only)),
        ("destructive", bool(claims.destructive)),
        ("idempotent", bool(claims.idempotent)),
        ("open_world", bool(claims.open_world)),
        ("by", text(claims.by.as_str())),
    ];
    RestrictedExpression::new_record(fields.map(|(name, value)| (name.to_owned(), value)))
        .map_err(|_| RequestError::SchemaMismatch("set of claims"))
}
