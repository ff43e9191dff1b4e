//! Resources and their template.

use rmcp::model::{Resource, ResourceContents, ResourceTemplate};

use crate::answers::PNG;

/// The resource that changes when `test_trigger_resource_update` is called.
pub const WATCHED: &str = "test://watched-resource";
/// The resource that is only read by who answers a question.
pub const ASKING: &str = "test://asking-resource";
pub const TEMPLATE: &str = "test://template/{id}/data";

pub fn list() -> Vec<Resource> {
    [
        ("test://static-text", "static-text", "text/plain"),
        ("test://static-binary", "static-binary", "image/png"),
        (WATCHED, "watched-resource", "text/plain"),
        (ASKING, "asking-resource", "text/plain"),
    ]
    .into_iter()
    .map(|(uri, name, kind)| {
        Resource::new(uri, name)
            .with_description(format!("The resource {name}"))
            .with_mime_type(kind)
    })
    .collect()
}

pub fn templates() -> Vec<ResourceTemplate> {
    vec![
        ResourceTemplate::new(TEMPLATE, "template")
            .with_description("Data by its id")
            .with_mime_type("application/json"),
    ]
}

/// What a resource holds that asks nothing.
pub fn read(uri: &str) -> Option<ResourceContents> {
    let text = |text: &str| ResourceContents::text(text, uri).with_mime_type("text/plain");
    Some(match uri {
        "test://static-text" => text("This is the content of the static text resource."),
        "test://static-binary" => ResourceContents::blob(PNG, uri).with_mime_type("image/png"),
        WATCHED => text("This resource may change at any time."),
        _ => {
            let id = uri.strip_prefix("test://template/")?.strip_suffix("/data")?;
            if id.is_empty() || id.contains('/') {
                return None;
            }
            let data = serde_json::json!({
                "id": id, "templateTest": true, "data": format!("Data for ID: {id}"),
            });
            ResourceContents::text(data.to_string(), uri).with_mime_type("application/json")
        }
    })
}
