//! Builds the shared object of a handler: kind of source, compiler, flags.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use toml::de::DeTable;

use crate::handlers::scan::is_path_byte;
use crate::kit::interface::HEADERS;

/// The author's file.
pub struct Source {
    kind: Kind,
    path: PathBuf,
    name: String,
    /// The directory for the compiled object and the headers.
    scratch: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Object,
    C,
    Cpp,
    Cargo,
}

/// The compiler has failed, and has printed why.
const FAILED: &str = "compilation failed";

impl Source {
    /// Determines the kind of the file, and its name; if it is a link, by that of the link.
    pub fn new(given: &Path, scratch: &Path) -> Result<Self, String> {
        let wrong = |why: String| format!("{}: {why}", given.display());
        let path = given.canonicalize().map_err(|error| wrong(error.to_string()))?;
        let (kind, name) = match path.is_dir() {
            true => (Kind::Cargo, name_of_package(&path.join("Cargo.toml"))?),
            false => name_of_file(given).map_err(wrong)?,
        };
        if !name.bytes().all(is_path_byte) {
            let why = "no request can name it: expected letters, digits and -._~!$&'()*+,;=:@ only";
            return Err(wrong(why.to_owned()));
        }
        write_headers(scratch)?;
        Ok(Source { kind, path, name, scratch: scratch.to_owned() })
    }

    /// The name of the resource.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directories to watch, and whether recursively.
    pub fn directories(&self) -> Vec<(PathBuf, bool)> {
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        let (dir, below) = match self.kind {
            Kind::Object => (parent, None),
            Kind::C | Kind::Cpp => (parent, Some("include")),
            Kind::Cargo => (self.path.as_path(), Some("src")),
        };
        let below = below.map(|name| dir.join(name)).filter(|dir| dir.is_dir());
        [(dir.to_owned(), false)].into_iter().chain(below.map(|dir| (dir, true))).collect()
    }

    /// Returns whether a change of a file requires a build.
    pub fn filter(&self) -> impl Fn(&Path) -> bool + Send + use<> {
        let (kind, object) = (self.kind, self.path.clone());
        move |changed| {
            let extension = changed.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
            match kind {
                Kind::Object => changed == object,
                Kind::C | Kind::Cpp => {
                    matches!(extension, "c" | "h" | "cc" | "cpp" | "cxx" | "hh" | "hpp" | "hxx")
                }
                Kind::Cargo => matches!(extension, "rs" | "toml"),
            }
        }
    }

    /// The shared object, compiled if needed. The compiler prints to standard error.
    pub fn build(&self) -> Result<PathBuf, String> {
        match self.kind {
            Kind::Object => Ok(self.path.clone()),
            Kind::C => {
                let flags = ["-Werror=implicit-function-declaration"];
                self.compile("CC", compiler("CC", "cc"), "CFLAGS", &flags)
            }
            Kind::Cpp => {
                let unique = knows_no_gnu_unique(compiler("CXX", "c++")).then_some("-fno-gnu-unique");
                self.compile("CXX", compiler("CXX", "c++"), "CXXFLAGS", unique.as_slice())
            }
            Kind::Cargo => self.cargo(),
        }
    }

    /// `variable` and `flags` are environment variables, with the compiler and options.
    fn compile(
        &self,
        variable: &str,
        mut compiler: Command,
        flags: &str,
        more: &[&str],
    ) -> Result<PathBuf, String> {
        let object = self.scratch.join("built.so");
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        compiler.args(["-O1", "-g", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden"]);
        // The author's copy of the header takes precedence over the embedded one.
        compiler.args(more).arg("-I").arg(dir.join("include")).arg("-I").arg(self.scratch.join("include"));
        compiler.args(words("CPPFLAGS")).args(words(flags)).arg(&self.path).arg("-o").arg(&object);
        compiler.args(words("LDFLAGS")).args(words("LDLIBS"));
        // It writes sources of its own, which would be changes if the author's file is in /tmp.
        compiler.env("TMPDIR", &self.scratch);
        match compiler.stdin(Stdio::null()).status() {
            Ok(status) if status.success() => Ok(object),
            Ok(_) => Err(FAILED.to_owned()),
            Err(error) => {
                let program = compiler.get_program();
                Err(format!("cannot run the compiler {program:?}: {error}; name another with {variable}"))
            }
        }
    }

    fn cargo(&self) -> Result<PathBuf, String> {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.args(["build", "--message-format=json-render-diagnostics"]).current_dir(&self.path);
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let output = output.map_err(|error| format!("cannot run cargo: {error}"))?;
        if !output.status.success() {
            return Err(FAILED.to_owned());
        }
        let object = shared_object(&output.stdout, &self.path.join("Cargo.toml"));
        object.ok_or_else(|| {
            let what = "makes no shared object: expected crate-type = [\"cdylib\"] in its [lib]";
            format!("{} {what}", self.path.display())
        })
    }
}

/// The kind of a file, and its name without `_wsh`.
fn name_of_file(path: &Path) -> Result<(Kind, String), String> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let (stem, extension) = file.rsplit_once('.').unwrap_or((&file, ""));
    let kind = match extension {
        "so" => Kind::Object,
        "c" => Kind::C,
        "cc" | "cpp" | "cxx" => Kind::Cpp,
        _ => return Err("expected NAME_wsh.so, .c, .cc, .cpp, .cxx or a Cargo directory".to_owned()),
    };
    let name = stem.strip_suffix("_wsh").filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| format!("expected a name that ends in _wsh.{extension}"))?;
    Ok((kind, name.to_owned()))
}

fn name_of_package(manifest: &Path) -> Result<String, String> {
    let wrong = |why: &dyn Display| format!("{}: {why}", manifest.display());
    let text = fs::read_to_string(manifest)
        .map_err(|error| wrong(&format!("{error}; a directory must have a Cargo.toml")))?;
    package_name(&text).map_err(|why| wrong(&why))
}

/// Writes the embedded headers, for sources without their own copy.
fn write_headers(scratch: &Path) -> Result<(), String> {
    let dir = scratch.join("include");
    let written = fs::create_dir_all(&dir)
        .and_then(|()| HEADERS.iter().try_for_each(|(name, text)| fs::write(dir.join(name), text)));
    written.map_err(|error| format!("{}: {error}", dir.display()))
}

/// The words of an environment variable; none if it is not set.
fn words(variable: &str) -> Vec<String> {
    let text = std::env::var(variable).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The compiler that an environment variable names, with its first options.
fn compiler(variable: &str, default: &str) -> Command {
    let mut words = words(variable).into_iter();
    let mut command = Command::new(words.next().unwrap_or_else(|| default.to_owned()));
    command.args(words);
    command
}

/// Whether this C++ compiler has -fno-gnu-unique, which keeps statics of templates apart from those of other handlers.
/// g++ has it; clang++ does not share them anyway.
fn knows_no_gnu_unique(mut compiler: Command) -> bool {
    compiler.args(["-Werror", "-fno-gnu-unique", "-x", "c++", "-E", "/dev/null"]);
    compiler.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    compiler.status().is_ok_and(|status| status.success())
}

/// The resource of a package: its name, without `-wsh`.
fn package_name(manifest: &str) -> Result<String, String> {
    let table = DeTable::parse(manifest).map_err(|error| error.message().to_owned())?;
    let package = table.get_ref().get("package").and_then(|package| package.get_ref().as_table());
    let name = package.and_then(|package| package.get("name")).and_then(|name| name.get_ref().as_str());
    let name = name.ok_or("has no package with a name")?;
    Ok(name.strip_suffix("-wsh").or(name.strip_suffix("_wsh")).unwrap_or(name).to_owned())
}

/// The shared object of this package, from cargo's messages about its artifacts.
fn shared_object(messages: &[u8], manifest: &Path) -> Option<PathBuf> {
    let lines = messages.split(|byte| *byte == b'\n');
    let messages = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let ours = messages.filter(|message| message["reason"] == "compiler-artifact");
    let mut ours = ours.filter(|message| message["manifest_path"].as_str().map(Path::new) == Some(manifest));
    ours.find_map(|message| {
        let files = message["filenames"].as_array()?.iter().filter_map(Value::as_str);
        files.into_iter().find(|file| file.ends_with(".so")).map(PathBuf::from)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_resource_of_a_package_is_its_name() {
        assert_eq!(package_name("[package]\nname = \"my-chat-wsh\"").unwrap(), "my-chat");
        assert_eq!(package_name("[package]\nname = \"chat\"").unwrap(), "chat");
        assert!(package_name("[workspace]").is_err() && package_name("[").is_err());
    }

    #[test]
    fn the_shared_object_is_that_of_the_package_itself() {
        let line = |path: &str, file: &str| {
            format!(r#"{{"reason":"compiler-artifact","manifest_path":"{path}","filenames":["{file}"]}}"#)
        };
        let messages = [line("/a/Cargo.toml", "/t/other.so"), line("/b/Cargo.toml", "/t/libb.so")].join("\n");
        let found = shared_object(messages.as_bytes(), Path::new("/b/Cargo.toml"));
        assert_eq!(found, Some("/t/libb.so".into()));
        assert_eq!(shared_object(b"{}\nno json", Path::new("/b/Cargo.toml")), None);
    }

    #[test]
    fn files_that_are_not_handlers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["chat.c", "chat_wsh.py", "_wsh.c", "my chat_wsh.c"] {
            let path = dir.path().join(name);
            fs::write(&path, "").unwrap();
            assert!(Source::new(&path, dir.path()).err().unwrap().contains("expected"), "{name}");
        }
        let link = dir.path().join("chat_wsh.so");
        std::os::unix::fs::symlink(dir.path().join("chat.c"), &link).unwrap();
        assert_eq!(Source::new(&link, dir.path()).unwrap().name(), "chat");
        assert!(
            Source::new(&dir.path().join("no_wsh.c"), dir.path()).err().unwrap().contains("No such file")
        );
        assert!(Source::new(dir.path(), dir.path()).err().unwrap().contains("Cargo.toml"));
    }
}
