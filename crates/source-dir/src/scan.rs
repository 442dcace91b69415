//! Reading the directory: which files there are, what is in them, and what to keep of those that are broken.
//!
//! A file that cannot be read properly never takes away what was good: an object whose new text is wrong stays
//! as it last was, and if the text as a whole is not YAML, so does everything that was in the file.

use index::Sourced;
use k8s_api::object::{Object, ObjectKey};
use k8s_api::yaml::{self, Document, YamlError};
use model::Origin;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How deep directories may be nested. More is a loop of symbolic links.
const MAX_DEPTH: usize = 32;

/// A file that was not written to for so long is taken to be complete.
const SETTLED: Duration = Duration::from_secs(1);

/// The directory cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", .path.display())]
pub struct ScanError {
    /// The directory.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Something in the directory that is not used, or not as its author meant it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1; 0 if the file as a whole is meant.
    pub line: u64,
    /// The object and field at fault and what is wrong.
    pub message: String,
    /// Whether something is not used; otherwise it is only suspicious.
    pub is_error: bool,
}

/// What a scan found.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// Every object, in the order of paths and of documents. Of several definitions of one object the first is
    /// here.
    pub objects: Vec<Sourced>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Manifests that are in use although they are not in the directory any more: the file that they were in cannot
    /// be read properly.
    pub kept: Vec<Kept>,
}

/// The last good form of a manifest whose file cannot be read properly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    /// The file.
    pub path: PathBuf,
    /// The line at which the object began, from 1.
    pub line: u32,
    /// The kind, namespace and name, for people.
    pub object: String,
    /// The document that the object was in. There can be others in it.
    pub text: String,
}

/// Reads a directory again and again, and only what has changed.
#[derive(Debug)]
pub struct Scanner {
    root: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// What was in use when somebody last looked, in another process.
    restored: BTreeMap<PathBuf, Vec<Entry>>,
    /// Whether policies that nothing enforces yet are only warned of.
    allows_unenforced: bool,
}

/// Distinguishes versions of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    identity: (u64, u64),
    len: u64,
    modified: Option<SystemTime>,
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            identity: (metadata.dev(), metadata.ino()),
            len: metadata.len(),
            modified: metadata.modified().ok(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Returns whether the file may still be being written: it is the same file as before, not one that has
    /// taken its place, and was written to just now.
    fn is_unsettled(&self, before: &Self) -> bool {
        let age = self.modified.and_then(|modified| modified.elapsed().ok());
        self.identity == before.identity && age.is_some_and(|age| age < SETTLED)
    }
}

#[derive(Debug)]
struct File {
    stamp: Stamp,
    entries: Vec<Entry>,
    problems: Vec<Problem>,
}

/// An object and the document that it was read from.
#[derive(Clone, Debug)]
struct Entry {
    sourced: Sourced,
    text: Arc<str>,
    document: Range<usize>,
    /// Whether the document is not in the file any more.
    is_kept: bool,
}

impl Scanner {
    /// Makes a scanner of the directory `root`, or of the single file.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            files: BTreeMap::new(),
            restored: BTreeMap::new(),
            allows_unenforced: false,
        }
    }

    /// Accepts security policies that nothing enforces yet, with a warning. Otherwise each is an error: a policy that
    /// looks in force and is not is worse than none.
    #[must_use]
    pub fn allow_unenforced_policies(mut self, allow: bool) -> Self {
        self.allows_unenforced = allow;
        self
    }

    /// Says what was in use when the directory was last looked at by another scanner: it stays in use as long as its
    /// file exists and cannot be read properly.
    pub fn restore(&mut self, kept: impl IntoIterator<Item = Kept>) {
        for Kept { path, line, object, text } in kept {
            let origin = Origin::File { path: path.display().to_string().into(), line };
            let documents = yaml::parse_documents(&text, &origin.to_string()).into_iter();
            let found = documents
                .filter_map(Result::ok)
                .find(|document| document.object.key().to_string() == object)
                .map(|document| Sourced { object: Arc::new(document.object), origin, unread: None });
            if let Some(sourced) = found {
                let entry = Entry { sourced, document: 0..text.len(), text: text.into(), is_kept: true };
                self.restored.entry(path).or_default().push(entry);
            }
        }
    }

    /// Returns the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Reads what has changed since the last scan. `closed` are files that are known to be completely written.
    ///
    /// A file that is written in place is half of what it will be for a moment. If nobody said that its writer
    /// has closed it, it is left as it was until it has not been written to for a second.
    ///
    /// # Errors
    ///
    /// If the directory is not there or may not be read. That is not the same as an empty one, and no reason to
    /// forget what was in it.
    pub fn scan(&mut self, closed: &HashSet<PathBuf>) -> Result<Scan, ScanError> {
        let mut problems = Vec::new();
        let mut paths = BTreeMap::new();
        let failed = |source| ScanError { path: self.root.clone(), source };
        let metadata = fs::metadata(&self.root).map_err(failed)?;
        if metadata.is_dir() {
            // The root must be readable; a directory below it that is not is one problem among others.
            fs::read_dir(&self.root).map_err(failed)?;
            find(&self.root, 0, &mut paths, &mut problems);
        } else {
            paths.insert(self.root.clone(), Stamp::of(&metadata));
        }
        self.files.retain(|path, _| paths.contains_key(path));
        for (path, stamp) in paths {
            let known = self.files.get(&path);
            if known.is_some_and(|file| {
                file.stamp == stamp || (!closed.contains(&path) && stamp.is_unsettled(&file.stamp))
            }) {
                continue;
            }
            let restored = self.restored.remove(&path).unwrap_or_default();
            let previous = known.map_or(restored.as_slice(), |file| file.entries.as_slice());
            let file = read(&path, stamp, previous, self.allows_unenforced);
            self.files.insert(path, file);
        }
        // What is not there is gone.
        self.restored.clear();
        Ok(self.collect(problems))
    }

    fn collect(&self, mut problems: Vec<Problem>) -> Scan {
        let mut objects = Vec::new();
        let mut kept = Vec::new();
        let mut seen: BTreeMap<ObjectKey, Origin> = BTreeMap::new();
        for (path, file) in &self.files {
            problems.extend(file.problems.iter().cloned());
            for entry in &file.entries {
                let sourced = &entry.sourced;
                let key = sourced.object.key();
                if let Some(first) = seen.get(&key) {
                    problems.push(Problem {
                        path: path.clone(),
                        line: line_of(&sourced.origin).into(),
                        message: format!("{key}: defined already at {first}, which is used"),
                        is_error: true,
                    });
                } else {
                    if entry.is_kept {
                        kept.push(Kept {
                            path: path.clone(),
                            line: line_of(&sourced.origin),
                            object: key.to_string(),
                            text: entry.text[entry.document.clone()].to_owned(),
                        });
                    }
                    seen.insert(key, sourced.origin.clone());
                    objects.push(sourced.clone());
                }
            }
        }
        problems.sort();
        Scan { objects, problems, kept }
    }
}

fn line_of(origin: &Origin) -> u32 {
    match origin {
        Origin::Api => 0,
        Origin::File { line, .. } => *line,
    }
}

/// Finds manifests below `directory`. Hidden entries are left out: among them are the versioned directories
/// behind the symbolic links of a mounted ConfigMap, and the files that editors keep aside.
fn find(directory: &Path, depth: usize, found: &mut BTreeMap<PathBuf, Stamp>, problems: &mut Vec<Problem>) {
    let mut complain = |path: &Path, message: String| {
        problems.push(Problem { path: path.to_owned(), line: 0, message, is_error: true });
    };
    if depth > MAX_DEPTH {
        complain(directory, "directories are nested too deeply".to_owned());
        return;
    }
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return complain(directory, format!("cannot read the directory: {error}")),
    };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        // Follows symbolic links. A file that vanished in the meantime is not there.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => find(&path, depth + 1, found, problems),
            Ok(metadata) if metadata.is_file() && is_manifest(&path) => {
                found.insert(path, Stamp::of(&metadata));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => problems.push(Problem {
                message: format!("cannot read the file: {error}"),
                path,
                line: 0,
                is_error: true,
            }),
        }
    }
}

fn unenforced(path: &Path, document: &Document) -> Problem {
    let key = document.object.key();
    let message = format!(
        "{key}: refused: Weft does not enforce this kind yet, and traffic passes as if it were not there; \
         --allow-unenforced-policies accepts it with a warning"
    );
    Problem { path: path.to_owned(), line: document.line, message, is_error: true }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| matches!(extension.to_str(), Some("yaml" | "yml" | "json")))
}

fn read(path: &Path, stamp: Stamp, previous: &[Entry], allows_unenforced: bool) -> File {
    let origin = path.display().to_string();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let message = format!("cannot read the file: {error}");
            let problem = Problem { path: path.to_owned(), line: 0, message, is_error: true };
            let entries = previous.iter().map(|entry| Entry { is_kept: true, ..entry.clone() }).collect();
            return File { stamp, entries, problems: vec![problem] };
        }
    };
    let shared: Arc<str> = origin.as_str().into();
    let text: Arc<str> = text.into();
    let bounds = document_bounds(&text);
    let mut entries = Vec::new();
    let mut problems = Vec::new();
    let mut broken = Broken::default();
    for document in yaml::parse_documents(&text, &origin) {
        match document {
            Ok(document) => {
                problems.extend(document.warnings.iter().map(|warning| Problem {
                    path: path.to_owned(),
                    line: warning.line,
                    message: format!("{}: {}: {}", document.object.key(), warning.path, warning.message),
                    is_error: false,
                }));
                if document.is_unenforced && !allows_unenforced {
                    problems.push(unenforced(path, &document));
                }
                if matches!(document.object, Object::Other(_)) {
                    continue;
                }
                let line = u32::try_from(document.line).unwrap_or(u32::MAX);
                entries.push(Entry {
                    sourced: Sourced {
                        object: Arc::new(document.object),
                        origin: Origin::File { path: shared.clone(), line },
                        unread: None,
                    },
                    text: text.clone(),
                    document: document_at(&bounds, document.line, text.len()),
                    is_kept: false,
                });
            }
            Err(error) => {
                problems.push(Problem {
                    path: path.to_owned(),
                    line: error.line,
                    message: message_of(&error),
                    is_error: true,
                });
                broken.add(error);
            }
        }
    }
    broken.keep_previous(&mut entries, previous);
    File { stamp, entries, problems }
}

/// Returns where documents begin: line, from 1, and offset.
fn document_bounds(text: &str) -> Vec<(u64, usize)> {
    let mut bounds = vec![(1, 0)];
    let mut offset = 0;
    for (line, content) in (1..).zip(text.split_inclusive('\n')) {
        if content.starts_with("---") && offset > 0 {
            bounds.push((line, offset));
        }
        offset += content.len();
    }
    bounds
}

/// Returns the document that `line` is in.
fn document_at(bounds: &[(u64, usize)], line: u64, len: usize) -> Range<usize> {
    let next = bounds.partition_point(|(first, _)| *first <= line);
    let start = next.checked_sub(1).and_then(|index| bounds.get(index)).map_or(0, |(_, offset)| *offset);
    start..bounds.get(next).map_or(len, |(_, offset)| *offset)
}

/// Returns the message without file and line, which a [`Problem`] has apart.
fn message_of(error: &YamlError) -> String {
    let object = error.object.as_ref().map(|object| format!("{object}: ")).unwrap_or_default();
    let path = if error.path.is_empty() { String::new() } else { format!("{}: ", error.path) };
    format!("{object}{path}{}", error.message)
}

/// Which objects of a file could not be read.
#[derive(Default)]
struct Broken {
    objects: BTreeSet<ObjectKey>,
    /// Some text could not be told to be any object.
    unknown: bool,
}

impl Broken {
    fn add(&mut self, error: YamlError) {
        match error.object {
            Some(object) => {
                self.objects.insert(*object);
            }
            None => self.unknown = true,
        }
    }

    /// Adds the last good form of what is broken now.
    fn keep_previous(&self, entries: &mut Vec<Entry>, previous: &[Entry]) {
        let good: BTreeSet<ObjectKey> = entries.iter().map(|entry| entry.sourced.object.key()).collect();
        let lost = |entry: &&Entry| {
            let key = entry.sourced.object.key();
            !good.contains(&key) && (self.unknown || self.objects.contains(&key))
        };
        let lost = previous.iter().filter(lost).cloned();
        entries.extend(lost.map(|entry| Entry { is_kept: true, ..entry }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: NAME, namespace: app}\nspec: {ports: [{port: PORT}]}\n";

    fn service(name: &str, port: &str) -> String {
        SERVICE.replace("NAME", name).replace("PORT", port)
    }

    fn directory(files: &[(&str, &str)]) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        directory
    }

    /// Replaces a file as editors do, and as whoever cares about readers does.
    fn replace(directory: &TempDir, name: &str, text: &str) {
        let aside = directory.path().join(".aside");
        fs::write(&aside, text).unwrap();
        fs::rename(aside, directory.path().join(name)).unwrap();
    }

    fn look(scanner: &mut Scanner) -> Scan {
        scanner.scan(&HashSet::new()).unwrap()
    }

    fn names(scan: &Scan) -> Vec<String> {
        scan.objects.iter().map(|sourced| sourced.object.key().name).collect()
    }

    fn ports(scan: &Scan) -> Vec<u16> {
        let port = |sourced: &Sourced| match sourced.object.as_ref() {
            Object::Service(service) => service.spec.ports[0].port,
            other => panic!("{other:?}"),
        };
        scan.objects.iter().map(port).collect()
    }

    #[test]
    fn a_policy_that_is_not_enforced_is_an_error_unless_it_is_allowed() {
        let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: app}\n";
        let directory = directory(&[("a.yaml", policy)]);
        let errors = |allow: bool| {
            let mut scanner = Scanner::new(directory.path()).allow_unenforced_policies(allow);
            let problems = look(&mut scanner).problems;
            assert!(problems.iter().any(|problem| problem.message.contains("not read yet")), "{problems:?}");
            problems.into_iter().filter(|problem| problem.is_error).map(|problem| problem.message).collect()
        };
        let refused: Vec<String> = errors(false);
        assert_eq!(refused.len(), 1);
        assert!(refused[0].starts_with("AuthorizationPolicy app/a: refused: "), "{refused:?}");
        assert_eq!(errors(true), Vec::<String>::new());
    }

    #[test]
    fn manifests_are_found_in_all_directories_and_hidden_files_are_not() {
        let directory = directory(&[
            ("b/c.yaml", &service("two", "80")),
            ("a.yml", &(service("one", "80") + "---\n" + &service("also", "80"))),
            (".hidden.yaml", &service("hidden", "80")),
            ("..data/x.yaml", &service("versioned", "80")),
            ("readme.txt", "no: manifest"),
        ]);
        let scan = look(&mut Scanner::new(directory.path()));
        assert_eq!(names(&scan), ["one", "also", "two"]);
        assert_eq!(scan.problems, []);
    }

    #[test]
    fn a_broken_document_keeps_the_last_good_object_and_names_file_and_line() {
        let directory = directory(&[("a.yaml", &(service("one", "80") + "---\n" + &service("two", "80")))]);
        let mut scanner = Scanner::new(directory.path());
        look(&mut scanner);
        let text = service("one", "81") + "---\n" + &service("two", "not-a-port");
        replace(&directory, "a.yaml", &text);
        let scan = look(&mut scanner);
        assert_eq!(names(&scan), ["one", "two"]);
        assert_eq!(ports(&scan), [81, 80]);
        let [problem] = &scan.problems[..] else { panic!("{:?}", scan.problems) };
        assert!(problem.is_error && problem.line >= 6, "{problem:?}");
        assert!(problem.message.starts_with("Service app/two: spec.ports[0].port: "), "{problem:?}");
    }

    #[test]
    fn text_that_is_not_yaml_keeps_everything_that_was_in_the_file() {
        let directory = directory(&[("a.yaml", &service("one", "80")), ("b.yaml", &service("two", "80"))]);
        let mut scanner = Scanner::new(directory.path());
        look(&mut scanner);
        replace(&directory, "a.yaml", "apiVersion: [v1");
        let scan = look(&mut scanner);
        assert_eq!(names(&scan), ["one", "two"]);
        assert_eq!(scan.problems.len(), 1);
        // Once it is right again the problem is gone, and what was removed on purpose with it.
        replace(&directory, "a.yaml", &service("other", "80"));
        let scan = look(&mut scanner);
        assert_eq!(names(&scan), ["other", "two"]);
        assert_eq!(scan.problems, []);
    }

    #[test]
    fn what_is_kept_survives_its_scanner() {
        let list = "kind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: three, \
                    namespace: app}, spec: {ports: [{name: http, port: 82}]}}\n";
        let text = service("one", "80") + "--- # two\n" + &service("two", "81") + "---\n" + list;
        let directory = directory(&[("a.yaml", &text), ("b.yaml", &service("four", "83"))]);
        let mut first = Scanner::new(directory.path());
        assert_eq!(look(&mut first).kept, []);
        replace(&directory, "a.yaml", &(service("one", "90") + "---\n[no"));
        replace(&directory, "b.yaml", "]");
        let before = look(&mut first);
        let kept: Vec<&str> = before.kept.iter().map(|kept| kept.object.as_str()).collect();
        assert_eq!(kept, ["Service app/two", "Service app/three", "Service app/four"]);
        assert!(before.kept[0].text.starts_with("--- # two") && !before.kept[0].text.contains("three"));

        // Another process: the files are as broken as they were.
        let mut second = Scanner::new(directory.path());
        second.restore(before.kept.clone());
        let after = look(&mut second);
        assert_eq!((names(&after), ports(&after)), (names(&before), ports(&before)));
        assert_eq!(after.kept, before.kept);

        // A file that was put right, and one that is gone, need nothing any more.
        let mut third = Scanner::new(directory.path());
        third.restore(before.kept);
        replace(&directory, "a.yaml", &service("one", "90"));
        fs::remove_file(directory.path().join("b.yaml")).unwrap();
        let scan = look(&mut third);
        assert_eq!((names(&scan), scan.kept), (vec!["one".to_owned()], vec![]));
    }

    #[test]
    fn a_missing_directory_is_an_error_and_not_an_empty_mesh() {
        let directory = directory(&[("a.yaml", &service("one", "80"))]);
        let mut scanner = Scanner::new(directory.path());
        look(&mut scanner);
        let elsewhere = directory.path().with_extension("moved");
        fs::rename(directory.path(), &elsewhere).unwrap();
        assert!(scanner.scan(&HashSet::new()).is_err());
        fs::rename(&elsewhere, directory.path()).unwrap();
        assert_eq!(names(&look(&mut scanner)), ["one"]);
    }

    #[test]
    fn the_symbolic_links_of_a_config_map_are_followed_when_they_are_swapped() {
        let directory =
            directory(&[("..1/a.yaml", &service("one", "80")), ("..2/a.yaml", &service("one", "81"))]);
        let at = |name: &str| directory.path().join(name);
        symlink("..1", at("..data")).unwrap();
        symlink("..data/a.yaml", at("a.yaml")).unwrap();
        let mut scanner = Scanner::new(directory.path());
        assert_eq!(ports(&look(&mut scanner)), [80]);
        symlink("..2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert_eq!(ports(&look(&mut scanner)), [81]);
    }

    #[test]
    fn of_two_definitions_the_first_is_used_and_the_other_reported() {
        let directory = directory(&[("a.yaml", &service("one", "80")), ("b.yaml", &service("one", "81"))]);
        let scan = look(&mut Scanner::new(directory.path()));
        assert_eq!(ports(&scan), [80]);
        let [problem] = &scan.problems[..] else { panic!("{:?}", scan.problems) };
        assert!(problem.path.ends_with("b.yaml"), "{problem:?}");
        assert!(problem.message.contains("a.yaml:1"), "{problem:?}");
    }

    #[test]
    fn only_files_that_changed_are_read() {
        let directory = directory(&[("a.yaml", &service("one", "80")), ("b.yaml", &service("two", "80"))]);
        let mut scanner = Scanner::new(directory.path());
        let first = look(&mut scanner);
        replace(&directory, "b.yaml", &service("two", "81"));
        let second = look(&mut scanner);
        assert!(Arc::ptr_eq(&first.objects[0].object, &second.objects[0].object));
        assert!(!Arc::ptr_eq(&first.objects[1].object, &second.objects[1].object));
    }

    #[test]
    fn a_file_that_is_being_written_is_left_as_it_was_until_it_is_closed() {
        let directory = directory(&[("a.yaml", &(service("one", "80") + "---\n" + &service("two", "80")))]);
        let mut scanner = Scanner::new(directory.path());
        look(&mut scanner);
        let path = directory.path().join("a.yaml");
        fs::write(&path, service("one", "81")).unwrap();
        assert_eq!(names(&look(&mut scanner)), ["one", "two"]);
        let closed = HashSet::from([path]);
        assert_eq!(ports(&scanner.scan(&closed).unwrap()), [81]);
    }
}
