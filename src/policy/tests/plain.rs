//! Requests to Cedar as built without our code: with all data, as expressions that Cedar evaluates.

use cedar_policy::{Context, Entity, EntityUid, RestrictedExpression as Expr};

use super::{super::normalize, *};

fn text(text: impl Into<String>) -> Expr {
    Expr::new_string(text.into())
}

fn long(value: impl TryInto<i64>) -> Expr {
    Expr::new_long(value.try_into().unwrap_or(i64::MAX))
}

fn shown(kind: &str) -> EntityUid {
    format!(r#"Portcullis::{kind}::"{}""#, kind.to_lowercase()).parse().unwrap()
}

/// The complete request.
pub(in super::super) fn whole(
    vocabulary: &Vocabulary,
    schema: &Schema,
    about: About<'_>,
    request: &Request<'_>,
) -> (cedar_policy::Request, Entities) {
    let base = vocabulary.base(about, schema).unwrap();
    let entities = vocabulary.entities(&base, &about.resource).unwrap();
    let entities = entities.add_entities(arguments(request), None).unwrap();
    let resource = vocabulary.resource_uid(&about.resource);
    let mut context = context(&request.circumstances);
    if about.own {
        let input = vocabulary.input(request).unwrap();
        context = context.merge([("input".to_owned(), input)]).unwrap();
    }
    let question =
        cedar_policy::Request::new(base.subject, base.action, resource, context, Some(schema));
    (question.unwrap(), entities)
}

fn context(circumstances: &Circumstances<'_>) -> Context {
    let transport = match circumstances.transport {
        Some(Transport::Http) => "http",
        Some(Transport::Unix) => "unix",
        Some(Transport::Stdio) => "stdio",
        Some(Transport::Cli) => "cli",
        None => "",
    };
    let now = circumstances.now.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string();
    let weekday = circumstances.now.to_zoned(jiff::tz::TimeZone::UTC).weekday();
    let weekday = i64::from(weekday.to_monday_one_offset());
    let address = circumstances.source_ip.map(|address| address.to_canonical().to_string());
    let revision = circumstances.revision.map_or("", exchange::Revision::as_str);
    let pairs = [
        ("method", text(circumstances.method)),
        ("transport", text(transport)),
        ("revision", text(revision)),
        ("session_calls", long(circumstances.session_calls)),
        ("labels", Expr::new_set(circumstances.labels.iter().map(text))),
        ("now", Expr::new_datetime(now)),
        ("weekday", Expr::new_long(weekday)),
        ("args", Expr::new_entity_uid(shown("Args"))),
        ("paths", Expr::new_entity_uid(shown("Paths"))),
        ("urls", Expr::new_entity_uid(shown("Urls"))),
        ("lists", Expr::new_entity_uid(shown("Lists"))),
    ];
    let address = address.map(|address| ("source_ip", Expr::new_ip(address)));
    let pairs = pairs.into_iter().chain(address);
    Context::from_pairs(pairs.map(|(name, value)| (name.to_owned(), value))).unwrap()
}

fn arguments(request: &Request<'_>) -> [Entity; 4] {
    let arguments::Arguments { leaves, lists } =
        request.args.map(|args| arguments::Arguments::of(args).unwrap()).unwrap_or_default();
    let size = leaves.iter().map(|leaf| leaf.value.len()).sum::<usize>();
    let keys = request.args.iter().flat_map(|args| args.keys());
    let summary = [
        ("keys", Expr::new_set(keys.map(text))),
        ("leaves", long(leaves.len())),
        ("size", long(size)),
    ];
    let summary = summary.map(|(name, value)| (name.to_owned(), value));
    let args = leaves.iter().map(|leaf| (leaf.pointer.clone(), text(&leaf.value)));
    let texts = || leaves.iter().filter_map(|leaf| Some((leaf.pointer.clone(), leaf.text()?)));
    let paths = texts().map(|(pointer, path)| (pointer, text(normalize::path(path).unwrap())));
    let urls = texts().filter_map(|(pointer, url)| Some((pointer, normalize::Url::read(url)?)));
    let urls = urls.map(|(pointer, url)| {
        let fields = [
            ("href", text(url.href)),
            ("scheme", text(url.scheme)),
            ("host", text(url.host)),
            ("port", long(url.port)),
            ("path", text(url.path)),
            ("login", Expr::new_bool(url.login)),
            ("verbatim", Expr::new_bool(url.verbatim)),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), value));
        (pointer, Expr::new_record(fields).unwrap())
    });
    let lists = lists.into_iter().map(|list| (list.pointer, long(list.length)));
    [
        Entity::new_with_tags(shown("Args"), summary, [], args).unwrap(),
        Entity::new_with_tags(shown("Paths"), [], [], paths).unwrap(),
        Entity::new_with_tags(shown("Urls"), [], [], urls).unwrap(),
        Entity::new_with_tags(shown("Lists"), [], [], lists).unwrap(),
    ]
}
