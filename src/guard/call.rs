//! Executes a parsed call: sends a new request to the engine, and checks the client's rights.

use std::{cell::RefCell, path::PathBuf, sync::Arc, time::Duration};

use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, CONTENT_TYPE, UPGRADE},
};
use http_body_util::BodyExt;
use hyper::{body::Incoming, upgrade};
use serde_json::{Value, json};
use tokio::time::timeout;
use url::form_urlencoded::Serializer;

use crate::{
    NAME,
    archive::Archive,
    body::Body,
    create::{self, NamespaceHold},
    engine::{self, Engine},
    label,
    lease::{Joining, LeasedContainer, Leases},
    peer::Peer,
    refusal::{Code, Refusal},
    route::{Act, ApiRequest, Call},
    rules::{Allow, Rules},
    tunnel,
};

/// Limit in bytes of a body that is read here.
const MAX_BODY_BYTES: usize = 4 << 20;
/// Time limit for such a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for the head of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit for the engine to load an image.
const LOAD_TIMEOUT: Duration = Duration::from_secs(600);
/// Limit in bytes of a registry login.
const MAX_LOGIN_BYTES: usize = 8192;
/// Fields of the engine's information that are passed on.
const INFO_FIELDS: [&str; 16] = [
    "Architecture",
    "CgroupDriver",
    "CgroupVersion",
    "CpuCfsQuota",
    "DefaultRuntime",
    "DockerRootDir",
    "Driver",
    "KernelVersion",
    "MemoryLimit",
    "OSType",
    "OperatingSystem",
    "PidsLimit",
    "Runtimes",
    "SecurityOptions",
    "ServerVersion",
    "Warnings",
];

/// State that all requests share.
pub struct Shared {
    pub rules: Rules,
    pub engine: Engine,
    pub leases: Leases,
}

impl Shared {
    /// Executes a call for a client.
    pub async fn carry_out(
        self: &Arc<Self>,
        request_parts: ApiRequest,
        peer: Peer,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let ApiRequest { base, call } = request_parts;
        match call {
            Call::Version => {
                nothing(request.into_body()).await?;
                self.pass(Method::GET, &format!("{base}/version")).await
            }
            Call::Info => {
                nothing(request.into_body()).await?;
                self.info(&base).await
            }
            Call::InspectImage(name) => {
                nothing(request.into_body()).await?;
                self.pass(Method::GET, &format!("{base}/images/{name}/json")).await
            }
            Call::Pull { image, tag, platform } => {
                let login = request.headers().get("x-registry-auth").cloned();
                nothing(request.into_body()).await?;
                self.pull(&base, &image, tag.as_deref(), platform.as_deref(), login).await
            }
            Call::Load => self.load(&base, request.into_body()).await,
            Call::List => {
                nothing(request.into_body()).await?;
                self.list(&base).await
            }
            Call::Create { name } => {
                let body = engine::read(request.into_body(), MAX_BODY_BYTES, BODY_TIMEOUT).await?;
                self.create(&base, &name, body.to_vec(), peer).await
            }
            Call::Container { container, act } => {
                let lease = self.leases.find(&container).ok_or_else(|| {
                    let why = "this guard has no container with that name";
                    Refusal::new(Code::Container, why)
                })?;
                // Without the lease and its permit: a wait can be long.
                let (id, mounts) = (lease.id.clone(), lease.mounts().to_vec());
                drop(lease);
                self.act(&format!("{base}/containers/{id}"), &id, &mounts, act, request).await
            }
        }
    }

    async fn pass(&self, method: Method, target: &str) -> Result<Response<Body>, Refusal> {
        let request = engine::request(method, target, engine::empty())?;
        self.engine.pass(request, Some(ANSWER_TIMEOUT)).await
    }

    /// Only the information that Portcullis uses. The rest contains names of proxies and
    /// registries, possibly with passwords.
    async fn info(&self, base: &str) -> Result<Response<Body>, Refusal> {
        let target = format!("{base}/info");
        let (status, info) = self.engine.ask(Method::GET, &target, Vec::new()).await?;
        if !status.is_success() {
            return Err(Refusal::new(Code::Engine, format!("the engine answered {status}")));
        }
        let fields: serde_json::Map<String, Value> = INFO_FIELDS
            .iter()
            .filter_map(|key| Some(((*key).to_owned(), info.get(*key)?.clone())))
            .collect();
        Ok(answer(StatusCode::OK, &Value::Object(fields)))
    }

    async fn pull(
        &self,
        base: &str,
        image: &str,
        tag: Option<&str>,
        platform: Option<&str>,
        login: Option<HeaderValue>,
    ) -> Result<Response<Body>, Refusal> {
        let refuse = |why: &str| Err(Refusal::new(Code::Image, why));
        if !self.rules.allows(Allow::Pull) {
            return refuse("pulling images is not allowed (see --allow pull)");
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._:/@-".contains(&b);
        if image.len() > 512 || image.starts_with('-') || !image.bytes().all(plain) {
            return refuse("this is not an image name");
        }
        let by_content = match tag {
            Some(tag) => create::is_digest(tag) && !image.contains('@'),
            None => image.split_once('@').is_some_and(|(_, digest)| create::is_digest(digest)),
        };
        if !by_content {
            return refuse("images can be pulled by digest only");
        }
        let query = query(&[("fromImage", Some(image)), ("tag", tag), ("platform", platform)]);
        let target = format!("{base}/images/create?{query}");
        let mut request = engine::request(Method::POST, &target, engine::empty())?;
        if let Some(login) = login {
            if login.len() > MAX_LOGIN_BYTES {
                return Err(Refusal::new(Code::Limit, "the login is too long"));
            }
            request.headers_mut().insert("x-registry-auth", login);
        }
        self.engine.pass(request, Some(LOAD_TIMEOUT)).await
    }

    async fn load(&self, base: &str, body: Incoming) -> Result<Response<Body>, Refusal> {
        if !self.rules.allows(Allow::Pack) {
            let why = "loading images is not allowed (see --allow pack)";
            return Err(Refusal::new(Code::Image, why));
        }
        let body = Archive::new(body, self.rules.image).boxed_unsync();
        let target = format!("{base}/images/load?quiet=true");
        let mut request = engine::request(Method::POST, &target, body)?;
        let tar = HeaderValue::from_static("application/x-tar");
        request.headers_mut().insert(CONTENT_TYPE, tar);
        self.engine.pass(request, Some(LOAD_TIMEOUT)).await
    }

    async fn create(
        self: &Arc<Self>,
        base: &str,
        name: &str,
        body: Vec<u8>,
        peer: Peer,
    ) -> Result<Response<Body>, Refusal> {
        let (shared, named) = (self.clone(), name.to_owned());
        let checked = looked(move || {
            let joining = RefCell::new(None);
            let join = |container: &str, hold: &NamespaceHold| {
                let joined = shared.leases.join(container, hold, peer)?;
                let id = joined.id().to_owned();
                joining.replace(Some(joined));
                Some(id)
            };
            let checked = create::check(&body, &named, &shared.rules, join)?;
            Ok((checked, joining.into_inner()))
        });
        // Undone unless the container is created.
        let (checked, mut joining) = checked.await?;
        let target = format!("{base}/images/{}/json", checked.image);
        let (status, image) = self.engine.ask(Method::GET, &target, Vec::new()).await?;
        if !status.is_success() {
            return Ok(answer(status, &image));
        }
        if !image.get("Config").is_some_and(Value::is_object) {
            let why = "the engine does not describe the image";
            return Err(Refusal::new(Code::Engine, why));
        }
        // An uncovered volume would be a folder on the host's disk, without a size limit.
        let volumes = image.pointer("/Config/Volumes").and_then(Value::as_object);
        if let Some(volume) =
            volumes.into_iter().flat_map(|v| v.keys()).find(|v| !checked.mount_points.contains(*v))
        {
            let why = format!(
                "the image's volume {} is neither in memory nor mounted",
                crate::refusal::shown(volume)
            );
            return Err(Refusal::new(Code::Profile, why));
        }
        if checked.holds.is_some() {
            let layers = image.pointer("/RootFS/Layers").and_then(Value::as_array);
            let ours = matches!(layers.map(Vec::as_slice), Some([Value::String(layer)])
                if self.rules.holders.contains(layer));
            if !ours {
                let why = "a pause container does not run Portcullis's program";
                return Err(Refusal::new(Code::Profile, why));
            }
        }
        let permit = self.leases.permit()?;
        let query = query(&[("name", Some(name))]);
        let target = format!("{base}/containers/create?{query}");
        // Completed even if the client disconnects: a created container has a lease and ends at
        // some time.
        let (engine, leases, body) = (self.engine.clone(), self.leases.clone(), checked.body);
        let (name, mounts, holds) = (name.to_owned(), checked.mounts, checked.holds);
        let guard = self.rules.name.clone();
        let creating = tokio::spawn(async move {
            let reply = engine.ask(Method::POST, &target, body).await;
            let (status, fields) = match reply {
                Ok(reply) => reply,
                Err(refusal) => {
                    joining.iter_mut().for_each(Joining::keep);
                    leases.lost(name, guard, permit);
                    return Err(refusal);
                }
            };
            if let Some(id) =
                fields.get("Id").and_then(Value::as_str).filter(|_| status.is_success())
            {
                joining.iter_mut().for_each(Joining::keep);
                let leased = LeasedContainer { name, mounts, holds, by: peer };
                leases.hold(id.to_owned(), leased, permit);
            }
            Ok((status, fields))
        });
        let created = creating.await;
        let (status, fields) =
            created.map_err(|_| Refusal::new(Code::Engine, "the creation was interrupted"))??;
        Ok(answer(status, &fields))
    }

    /// Containers created through this guard. Labels alone could be set by others.
    async fn list(&self, base: &str) -> Result<Response<Body>, Refusal> {
        let filters = filters(&self.rules.name);
        let target = format!("{base}/containers/json?all=true&{filters}");
        let (status, list) = self.engine.ask(Method::GET, &target, Vec::new()).await?;
        let Value::Array(mut list) = list else { return Ok(answer(status, &list)) };
        list.retain(|found| {
            let id = found.get("Id").and_then(Value::as_str);
            id.is_some_and(|id| self.leases.find(id).is_some())
        });
        Ok(answer(status, &Value::Array(list)))
    }

    async fn act(
        self: &Arc<Self>,
        base: &str,
        id: &str,
        mounts: &[(PathBuf, bool)],
        act: Act,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        if let Act::Attach { stdin, stdout, stderr } = act {
            let target = format!(
                "{base}/attach?stream=true&stdin={stdin}&stdout={stdout}&stderr={stderr}&logs=false"
            );
            return self.attach(&target, id, &mut request).await;
        }
        nothing(request.into_body()).await?;
        match act {
            Act::Inspect => self.pass(Method::GET, &format!("{base}/json")).await,
            Act::Stats => {
                let target = format!("{base}/stats?stream=false&one-shot=true");
                self.pass(Method::GET, &target).await
            }
            Act::Start => {
                self.mounts(mounts).await?;
                self.pass(Method::POST, &format!("{base}/start")).await
            }
            Act::Wait { condition } => {
                let target = format!("{base}/wait?condition={condition}");
                let request = engine::request(Method::POST, &target, engine::empty())?;
                self.engine.pass(request, None).await
            }
            Act::Kill { signal } => {
                self.pass(Method::POST, &format!("{base}/kill?signal={signal}")).await
            }
            Act::Remove { force, volumes } => {
                let target = format!("{base}?force={force}&v={volumes}");
                let answer = self.pass(Method::DELETE, &target).await?;
                if answer.status().is_success() {
                    self.leases.drop(id);
                }
                Ok(answer)
            }
            Act::Attach { .. } => Err(Refusal::new(
                Code::Call,
                "a container must be attached \
                before it starts",
            )),
        }
    }

    /// Checked again: a folder at the creation of the container may be a link now.
    async fn mounts(self: &Arc<Self>, mounts: &[(PathBuf, bool)]) -> Result<(), Refusal> {
        let (shared, mounts) = (self.clone(), mounts.to_vec());
        looked(move || {
            let mut all = mounts.iter();
            all.try_for_each(|(path, writable)| create::source(path, *writable, &shared.rules))
        })
        .await
    }

    async fn attach(
        self: &Arc<Self>,
        target: &str,
        id: &str,
        request: &mut Request<Incoming>,
    ) -> Result<Response<Body>, Refusal> {
        let asks = |name, word: &str| {
            let mut values = request.headers().get_all(name).iter();
            let first = values.next().and_then(|value: &HeaderValue| value.to_str().ok());
            first.is_some_and(|value| value.eq_ignore_ascii_case(word)) && values.next().is_none()
        };
        if !asks(CONNECTION, "upgrade") || !asks(UPGRADE, "tcp") {
            let why = "attaching requires `Connection: Upgrade` and `Upgrade: tcp`";
            return Err(Refusal::new(Code::Malformed, why));
        }
        let attachment = self.leases.attach(id)?;
        let streams = match self.engine.upgrade(target).await {
            Ok(Ok(streams)) => streams,
            Ok(Err(answer)) => return Ok(answer),
            Err(refusal) => return Err(refusal),
        };
        let upgraded = upgrade::on(request);
        tokio::spawn(async move {
            if let Some(client) = upgraded.await.ok().and_then(engine::socket) {
                tunnel::run(client, streams).await;
            }
            drop(attachment);
        });
        let mut response = Response::new(engine::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
        Ok(response)
    }
}

/// Accesses the file system on a blocking thread. If the file system does not answer, other
/// requests continue.
async fn looked<T: Send + 'static>(
    look: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let late = || Refusal::new(Code::Mount, "a folder of the host does not answer");
    let looking = timeout(BODY_TIMEOUT, tokio::task::spawn_blocking(look)).await;
    looking.map_err(|_| late())?.map_err(|_| late())?
}

/// Filter parameter for containers that may belong to this guard.
pub fn filters(name: &str) -> String {
    let filters = json!({
        "label": [label::CONTAINER, format!("{}={name}", label::GUARD)],
        "name": [format!("^/?{NAME}")],
    });
    query(&[("filters", Some(&filters.to_string()))])
}

fn query(parameters: &[(&str, Option<&str>)]) -> String {
    let mut query = Serializer::new(String::new());
    for (name, value) in parameters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.finish()
}

/// Checks that a request without a body has none.
async fn nothing(body: Incoming) -> Result<(), Refusal> {
    match engine::read(body, 0, BODY_TIMEOUT).await {
        Ok(_) => Ok(()),
        Err(refusal) if refusal.why.starts_with("the body is longer") => {
            Err(Refusal::new(Code::Malformed, "Portcullis never sends a body here"))
        }
        Err(refusal) => Err(refusal),
    }
}

fn answer(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(engine::full_body(value.to_string().into_bytes()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
