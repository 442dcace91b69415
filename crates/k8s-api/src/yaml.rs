//! Manifests as people write them: text to [`Object`]s.
//!
//! A bad document never hides the others. An error names file, line, object and field. Fields that nobody reads are reported with
//! line and path instead of being dropped. Text that would cost much to read (deep nesting, alias bombs, huge documents) is refused
//! before it does.
//!
//! ```text
//! text ─ split at document markers ─▶ compose with budgets ─▶ tree with lines ─▶ typed object
//!                                                            └ List: one object per item      └ unknown fields ─▶ warnings
//! ```

mod compose;
mod decode;
mod deserializer;
mod scalar;
mod tree;

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::object::{Object, ObjectKey};
use tree::Tree;

/// The namespace of a namespaced object that names none, as with `kubectl apply`.
pub const DEFAULT_NAMESPACE: &str = "default";

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The file, or whatever else the text came from.
    pub origin: Arc<str>,
    /// The line on which the object begins, counted from 1.
    pub line: u64,
    /// `apiVersion` as it is written.
    pub api_version: String,
    /// `kind` as it is written.
    pub kind: String,
    /// The object.
    pub object: Object,
    /// Whether it is a security policy that Weft does not enforce yet: its author must not believe that it holds.
    pub is_unenforced: bool,
    /// What its author should know, although the object is used.
    pub warnings: Vec<Warning>,
}

/// Something in a file that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The line, counted from 1.
    pub line: u64,
    /// The field, such as `spec.http[0].retires`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.path, self.message)
    }
}

/// Why a document, or an item of a list, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe())]
pub struct YamlError {
    /// The file, or whatever else the text came from.
    pub origin: Arc<str>,
    /// The line, counted from 1.
    pub line: u64,
    /// The object, as far as it could be read.
    pub object: Option<Box<ObjectKey>>,
    /// The field, such as `spec.http[0].timeout`; empty if the text as a whole is meant.
    pub path: String,
    /// What kind of error it is.
    pub kind: YamlErrorKind,
    /// What is wrong.
    pub message: String,
}

impl YamlError {
    /// An error of a value as a whole.
    pub(crate) fn of_value(origin: &str, message: &str) -> Self {
        Self {
            origin: origin.into(),
            line: 1,
            object: None,
            path: String::new(),
            kind: YamlErrorKind::Field,
            message: message.to_owned(),
        }
    }

    fn describe(&self) -> String {
        let mut text = format!("{}:{}: ", self.origin, self.line);
        if let Some(object) = &self.object {
            text.push_str(&format!("{object}: "));
        }
        if !self.path.is_empty() {
            text.push_str(&format!("{}: ", self.path));
        }
        text + &self.message
    }
}

/// Kinds of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum YamlErrorKind {
    /// The text is not YAML, or has a key twice.
    Syntax,
    /// The text is too large, too deep or expands too much.
    Limit,
    /// The document is not a Kubernetes object.
    NotAnObject,
    /// The kind has no such version.
    Version,
    /// A field has a value of the wrong type.
    Field,
}

/// How much a file may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a whole file.
    pub file_bytes: usize,
    /// Bytes of one document. The API server takes 3 MiB; lists of many objects are larger.
    pub document_bytes: usize,
    /// Documents of a file.
    pub documents: usize,
    /// Nesting of mappings and sequences.
    pub depth: usize,
    /// Nodes of one document.
    pub nodes: usize,
    /// Nodes that anchors may keep and aliases add, per document.
    pub alias_nodes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: 64 << 20,
            document_bytes: 8 << 20,
            documents: 50_000,
            depth: 100,
            nodes: 1_000_000,
            alias_nodes: 100_000,
        }
    }
}

/// Reads every object of a multi-document text, in order. Empty documents are skipped and lists expanded.
pub fn parse_documents(text: &str, origin: &str) -> Vec<Result<Document, YamlError>> {
    parse_documents_with(text, origin, &Limits::default())
}

/// [`parse_documents`] with other limits.
pub fn parse_documents_with(text: &str, origin: &str, limits: &Limits) -> Vec<Result<Document, YamlError>> {
    let origin: Arc<str> = origin.into();
    if text.len() > limits.file_bytes {
        let message = format!("the file has {} bytes, more than {}", text.len(), limits.file_bytes);
        return vec![Err(limit_error(&origin, 1, message))];
    }
    let mut results = Vec::new();
    for (index, part) in split(text).into_iter().enumerate() {
        if index == limits.documents {
            let message =
                format!("the file has more than {} documents; the rest is not read", limits.documents);
            results.push(Err(limit_error(&origin, part.first_line, message)));
            break;
        }
        match parse_tree(&part, &origin, limits) {
            Ok(Some(tree)) => decode::objects(&tree, &origin, &mut results),
            Ok(None) => {}
            Err(error) => results.push(Err(error)),
        }
    }
    results
}

/// A value that is not a Kubernetes object, such as a mesh configuration, read from YAML.
#[derive(Clone, Debug)]
pub struct Parsed<T> {
    /// The typed value.
    pub value: T,
    /// The value as JSON, which tells what was set.
    pub json: Value,
    /// Unknown fields.
    pub warnings: Vec<Warning>,
    lines: Tree,
}

impl<T> Parsed<T> {
    /// Returns the line of a field by its path of plain keys, such as `defaultConfig.concurrency`.
    pub fn line_of(&self, path: &str) -> u64 {
        let steps: Vec<tree::Step> = path.split('.').map(|key| tree::Step::Key(key.to_owned())).collect();
        self.lines.line_of(&steps)
    }
}

/// Reads every document of a text as it is written, also of kinds that nobody here knows. Empty documents are skipped.
///
/// # Errors
/// The first document that is not YAML.
pub fn parse_values(text: &str, origin: &str) -> Result<Vec<Value>, YamlError> {
    let origin: Arc<str> = origin.into();
    let mut values = Vec::new();
    for part in split(text) {
        values.extend(parse_tree(&part, &origin, &Limits::default())?.map(|tree| tree.to_json()));
    }
    Ok(values)
}

/// Reads one document as a value of type `T`. An empty text is `{}`.
///
/// # Errors
/// If the text is not one YAML document or a field has the wrong type.
pub fn parse_value<T: DeserializeOwned>(text: &str, origin: &str) -> Result<Parsed<T>, YamlError> {
    let origin: Arc<str> = origin.into();
    let limits = Limits::default();
    let mut trees = Vec::new();
    for part in split(text) {
        trees.extend(parse_tree(&part, &origin, &limits)?);
    }
    if let [_, second, ..] = trees.as_slice() {
        return Err(YamlError {
            origin,
            line: second.line,
            object: None,
            path: String::new(),
            kind: YamlErrorKind::Syntax,
            message: "one document is expected, here begins another".to_owned(),
        });
    }
    let tree = trees.pop().unwrap_or_else(|| Tree::empty_map(1));
    let json = tree.to_json();
    let decoded = deserializer::decode::<T>(&tree).map_err(|error| error.located(&tree, &origin, None))?;
    let warnings = decode::unknown_field_warnings(&tree, decoded.ignored);
    Ok(Parsed { value: decoded.value, json, warnings, lines: tree })
}

/// The text of one document.
struct Part<'a> {
    /// The number of its first line, counted from 1.
    first_line: u64,
    text: &'a str,
}

/// Splits at document markers. A line that begins with `---` or `...` is a marker wherever it stands, also inside of a scalar, so this
/// needs no parser, and a syntax error in one document cannot reach into the next (YAML 1.2, `c-forbidden`).
fn split(text: &str) -> Vec<Part<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut parts = Vec::new();
    let mut start = 0;
    let mut first_line = 1;
    let mut offset = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let marker = ["---", "..."].into_iter().find(|marker| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        });
        if let Some(marker) = marker {
            parts.push(Part { first_line, text: &text[start..offset] });
            // What follows `---` on its line is content; `...` only ends a document.
            (start, first_line) =
                if marker == "---" { (offset, number) } else { (offset + line.len(), number + 1) };
        }
        offset += line.len();
    }
    parts.push(Part { first_line, text: &text[start..] });
    parts.retain(|part| !is_blank(part.text));
    parts
}

/// True for text of nothing but markers, comments and directives.
fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.strip_prefix("---").unwrap_or(line).trim();
        line.is_empty() || line.starts_with('#') || line.starts_with('%')
    })
}

fn parse_tree(part: &Part<'_>, origin: &Arc<str>, limits: &Limits) -> Result<Option<Tree>, YamlError> {
    if part.text.len() > limits.document_bytes {
        let message =
            format!("the document has {} bytes, more than {}", part.text.len(), limits.document_bytes);
        return Err(limit_error(origin, part.first_line, message));
    }
    let composed = compose::compose(part.text, part.first_line - 1, limits);
    let tree = composed.map_err(|error| YamlError {
        origin: Arc::clone(origin),
        line: error.line,
        object: None,
        path: String::new(),
        kind: error.kind,
        message: error.message,
    })?;
    Ok(tree.filter(|tree| !tree.is_null()))
}

fn limit_error(origin: &Arc<str>, line: u64, message: String) -> YamlError {
    YamlError {
        origin: Arc::clone(origin),
        line,
        object: None,
        path: String::new(),
        kind: YamlErrorKind::Limit,
        message,
    }
}
