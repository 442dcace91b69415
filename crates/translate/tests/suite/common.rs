//! What the tests of this crate share: objects from YAML, translated whatever their kind.

use k8s_api::object::Object;
use k8s_api::yaml::parse_documents;
use model::MeshConfig;
use std::fmt::Debug;
use translate::{Context, Rejection, Translated};

/// Everything that came of an object, as text.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) object: String,
    pub(crate) value: Option<String>,
    pub(crate) rejections: Vec<Rejection>,
    pub(crate) warnings: Vec<Rejection>,
}

/// The context of all tests.
pub(crate) fn context() -> Context {
    Context::new(&MeshConfig::default(), "c1")
}

/// Reads all objects of a text.
pub(crate) fn objects(yaml: &str) -> Vec<Object> {
    let documents = parse_documents(yaml, "test").into_iter();
    documents
        .map(|document| {
            let document = document.unwrap_or_else(|error| panic!("{error}\n{yaml}"));
            assert_eq!(document.warnings, [], "{yaml}");
            document.object
        })
        .collect()
}

/// Translates an object of any kind that has a translation.
pub(crate) fn translate_object(context: &Context, object: &Object) -> Outcome {
    let name = object.key().to_string();
    match object {
        Object::VirtualService(object) => outcome(name, translate::virtual_service(context, object)),
        Object::DestinationRule(object) => outcome(name, translate::destination_rule(context, object)),
        Object::Gateway(object) => outcome(name, translate::gateway(context, object)),
        Object::ServiceEntry(object) => outcome(name, translate::service_entry(context, object)),
        Object::WorkloadEntry(object) => outcome(name, translate::workload_entry(object)),
        Object::Sidecar(object) => outcome(name, translate::sidecar(context, object)),
        Object::PeerAuthentication(object) => outcome(name, translate::peer_authentication(context, object)),
        Object::Service(object) => outcome(name, translate::service(context, object)),
        Object::Secret(object) => outcome(name, translate::secret(object)),
        Object::ConfigMap(object) => outcome(name, translate::config_map(object)),
        other => panic!("no translation of {}", other.key()),
    }
}

fn outcome<T: Debug>(object: String, translated: Translated<T>) -> Outcome {
    let value = translated.value.map(|value| format!("{value:#?}"));
    Outcome { object, value, rejections: translated.rejections, warnings: translated.warnings }
}
