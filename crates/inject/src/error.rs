//! Why a pod cannot get a proxy.

/// Why a pod cannot get a proxy. It is refused: running it outside of the mesh unasked would be worse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// An annotation has a value that is not understood.
    #[error("annotation {name}: {reason}")]
    Annotation {
        /// The annotation.
        name: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// The pod asks for a template that does not exist.
    #[error("annotation inject.istio.io/templates: there is no template {name:?}, only {known}")]
    UnknownTemplate {
        /// What it asks for.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// A template of the user's cannot be applied.
    #[error("injection template {name:?}: {reason}")]
    Template {
        /// The template.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A setting of the control plane has a value that is not understood.
    #[error("injection setting {name}: {reason}")]
    Setting {
        /// The setting.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The pod itself is not one.
    #[error("{path}: {reason}")]
    Pod {
        /// The field.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl InjectError {
    pub(crate) fn annotation(name: &str, reason: impl Into<String>) -> Self {
        Self::Annotation { name: name.to_owned(), reason: reason.into() }
    }

    pub(crate) fn setting(name: &str, reason: &impl ToString) -> Self {
        Self::Setting { name: name.to_owned(), reason: reason.to_string() }
    }
}
