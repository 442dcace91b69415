//! Collecting what is wrong, with the path of the field at hand.

use k8s_api::meta::ObjectMeta;
use model::{Kind, Labels, Meta, ObjectKey, Rejection};
use std::cell::RefCell;
use std::fmt::{self, Write as _};

/// The outcome of translating an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Translated<T> {
    /// What is used; none if nothing can be.
    pub value: Option<T>,
    /// What is not used, in the order of the object.
    pub rejections: Vec<Rejection>,
    /// What is used, but may not do what its author expects.
    pub warnings: Vec<Rejection>,
}

impl<T> Translated<T> {
    /// Applies `f` to the value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Translated<U> {
        Translated { value: self.value.map(f), rejections: self.rejections, warnings: self.warnings }
    }
}

/// What was found about one object so far.
#[derive(Debug)]
pub(crate) struct Report {
    object: ObjectKey,
    rejections: RefCell<Vec<Rejection>>,
    warnings: RefCell<Vec<Rejection>>,
}

impl Report {
    pub(crate) fn new(object: ObjectKey) -> Self {
        Self { object, rejections: RefCell::default(), warnings: RefCell::default() }
    }

    /// Returns the place named `field` at the top of the object.
    pub(crate) fn at<'a>(&'a self, field: &'a str) -> At<'a> {
        At { report: self, parent: None, step: Step::Field(field) }
    }

    /// Returns `value` if nothing was rejected: for kinds of which all is used or nothing.
    pub(crate) fn all_or_nothing<T>(self, value: T) -> Translated<T> {
        let good = self.rejections.borrow().is_empty();
        self.with(good.then_some(value))
    }

    /// Returns `value` whatever was rejected.
    pub(crate) fn with<T>(self, value: Option<T>) -> Translated<T> {
        Translated { value, rejections: self.rejections.into_inner(), warnings: self.warnings.into_inner() }
    }
}

/// A place in an object.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    report: &'a Report,
    parent: Option<&'a Self>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> At<'a> {
    /// Returns the place of a field of the message here.
    pub(crate) fn field(&'a self, name: &'a str) -> Self {
        self.step(Step::Field(name))
    }

    /// Returns the place of an element of the list here.
    pub(crate) fn index(&'a self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    /// Returns the place of a value of the map here.
    pub(crate) fn key(&'a self, key: &'a str) -> Self {
        self.step(Step::Key(key))
    }

    fn step(&'a self, step: Step<'a>) -> Self {
        At { report: self.report, parent: Some(self), step }
    }

    /// Notes that what is here is not used.
    pub(crate) fn reject(&self, reason: impl Into<String>) {
        let rejection = self.found(reason.into());
        self.report.rejections.borrow_mut().push(rejection);
    }

    /// Notes that what is here may not do what its author expects.
    pub(crate) fn warn(&self, reason: impl Into<String>) {
        let warning = self.found(reason.into());
        self.report.warnings.borrow_mut().push(warning);
    }

    /// Unwraps a parser's result, noting its error here.
    pub(crate) fn check<T, E: fmt::Display>(&self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.reject(error.to_string())).ok()
    }

    /// Returns how many rejections there are so far, to see later whether there were more.
    pub(crate) fn rejected_so_far(&self) -> usize {
        self.report.rejections.borrow().len()
    }

    fn found(&self, reason: String) -> Rejection {
        Rejection { object: self.report.object.clone(), field: self.to_string(), reason }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Field(name) if self.parent.is_none() => f.write_str(name),
            Step::Field(name) => {
                f.write_char('.')?;
                f.write_str(name)
            }
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key(key) => write!(f, "[{key}]"),
        }
    }
}

/// Names the object with this metadata.
pub(crate) fn object_key(kind: Kind, metadata: &ObjectMeta) -> ObjectKey {
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    ObjectKey::new(kind, namespace, metadata.name.as_deref().unwrap_or_default())
}

/// Takes over the metadata that the mesh uses.
pub(crate) fn meta(kind: Kind, metadata: &ObjectMeta) -> Meta {
    Meta {
        key: object_key(kind, metadata),
        created: created(metadata),
        labels: labels(metadata.labels.iter().flatten()),
        annotations: labels(metadata.annotations.iter().flatten()),
    }
}

/// Returns the object's creation time in seconds since the epoch, 0 if it says none.
pub(crate) fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

/// Copies labels.
pub(crate) fn labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Labels {
    labels.into_iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_names_the_field_by_its_path() {
        let report = Report::new(ObjectKey::new(Kind::VirtualService, "shop", "cart"));
        let spec = report.at("spec");
        spec.field("http").index(1).field("headers").key("x-a").reject("must not be empty");
        let outcome = report.all_or_nothing(());
        assert_eq!(outcome.value, None);
        assert_eq!(
            outcome.rejections[0].to_string(),
            "VirtualService shop/cart: spec.http[1].headers[x-a]: must not be empty"
        );
    }
}
