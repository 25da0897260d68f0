//! Builds the shared object of a handler: kind of source, compiler, flags.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use toml::de::DeTable;

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

/// Why there is no shared object.
pub enum BuildError {
    /// The compiler failed, and has printed why.
    Compiler,
    /// Another reason.
    Other(String),
}

impl Source {
    /// Determines the kind of the file.
    pub fn new(path: &Path, scratch: &Path) -> Result<Self, String> {
        let shown = path.display();
        let path = path.canonicalize().map_err(|error| format!("{shown}: {error}"))?;
        let scratch = scratch.to_owned();
        if path.is_dir() {
            let manifest = path.join("Cargo.toml");
            let text = fs::read_to_string(&manifest).map_err(|error| {
                format!("{}: {error}; a directory must have a Cargo.toml", manifest.display())
            })?;
            let name = package_name(&text).map_err(|why| format!("{}: {why}", manifest.display()))?;
            return Ok(Source { kind: Kind::Cargo, path, name, scratch });
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (stem, extension) = file.rsplit_once('.').unwrap_or((&file, ""));
        let kind = match extension {
            "so" => Kind::Object,
            "c" => Kind::C,
            "cc" | "cpp" | "cxx" => Kind::Cpp,
            _ => {
                return Err(format!(
                    "{shown}: expected NAME_wsh.so, .c, .cc, .cpp, .cxx or a Cargo directory"
                ));
            }
        };
        let name = stem.strip_suffix("_wsh").filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("{shown}: expected a name that ends in _wsh.{extension}"))?;
        let name = name.to_owned();
        write_headers(&scratch)?;
        Ok(Source { kind, path, name, scratch })
    }

    /// The name of the resource.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directories to watch, and whether recursively.
    pub fn directories(&self) -> Vec<(PathBuf, bool)> {
        let dir = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        match self.kind {
            Kind::Object => vec![(dir, false)],
            Kind::C | Kind::Cpp => {
                let include = dir.join("include");
                let mut all = vec![(dir, false)];
                all.extend(include.is_dir().then_some((include, true)));
                all
            }
            Kind::Cargo => {
                let sources = self.path.join("src");
                let mut all = vec![(self.path.clone(), false)];
                all.extend(sources.is_dir().then_some((sources, true)));
                all
            }
        }
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
    pub fn build(&self) -> Result<PathBuf, BuildError> {
        match self.kind {
            Kind::Object => Ok(self.path.clone()),
            Kind::C => self.compile(("CC", "cc", "CFLAGS"), &["-Werror=implicit-function-declaration"]),
            Kind::Cpp => {
                let compiler = words("CXX", "c++");
                let unique = knows_no_gnu_unique(&compiler).then_some("-fno-gnu-unique");
                self.compile(("CXX", "c++", "CXXFLAGS"), unique.as_slice())
            }
            Kind::Cargo => self.cargo(),
        }
    }

    fn compile(
        &self,
        (variable, default, flags): (&str, &str, &str),
        more: &[&str],
    ) -> Result<PathBuf, BuildError> {
        let compiler = words(variable, default);
        let object = self.scratch.join("built.so");
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let (program, first) = compiler.split_first().ok_or(BuildError::Compiler)?;
        let mut command = Command::new(program);
        command.args(first).args([
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-fPIC",
            "-shared",
            "-fvisibility=hidden",
        ]);
        // The author's copy of the header takes precedence over the embedded one.
        command.args(more).arg("-I").arg(dir.join("include")).arg("-I").arg(self.scratch.join("include"));
        command.args(words("CPPFLAGS", "")).args(words(flags, "")).arg(&self.path).arg("-o").arg(&object);
        command.args(words("LDFLAGS", "")).args(words("LDLIBS", ""));
        let status = command.stdin(Stdio::null()).status().map_err(|error| {
            BuildError::Other(format!(
                "cannot run the compiler {program:?}: {error}; name another with {variable}"
            ))
        })?;
        if status.success() { Ok(object) } else { Err(BuildError::Compiler) }
    }

    fn cargo(&self) -> Result<PathBuf, BuildError> {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.args(["build", "--message-format=json-render-diagnostics"]).current_dir(&self.path);
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let output = output.map_err(|error| BuildError::Other(format!("cannot run cargo: {error}")))?;
        if !output.status.success() {
            return Err(BuildError::Compiler);
        }
        let object = shared_object(&output.stdout, &self.path.join("Cargo.toml"));
        object.ok_or_else(|| {
            let what = "makes no shared object: expected crate-type = [\"cdylib\"] in its [lib]";
            BuildError::Other(format!("{} {what}", self.path.display()))
        })
    }
}

/// Writes the embedded headers, for sources without their own copy.
fn write_headers(scratch: &Path) -> Result<(), String> {
    let dir = scratch.join("include");
    let written = fs::create_dir_all(&dir)
        .and_then(|()| HEADERS.iter().try_for_each(|(name, text)| fs::write(dir.join(name), text)));
    written.map_err(|error| format!("{}: {error}", dir.display()))
}

/// The words of an environment variable.
fn words(variable: &str, default: &str) -> Vec<String> {
    let text = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    text.split_whitespace().map(str::to_owned).collect()
}

/// Whether this C++ compiler has -fno-gnu-unique, which keeps statics of templates apart from those of other handlers.
/// g++ has it; clang++ does not share them anyway.
fn knows_no_gnu_unique(compiler: &[String]) -> bool {
    let Some((program, first)) = compiler.split_first() else { return false };
    let mut command = Command::new(program);
    command.args(first).args(["-Werror", "-fno-gnu-unique", "-x", "c++", "-E", "/dev/null"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
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
        for name in ["chat.c", "chat_wsh.py", "_wsh.c"] {
            let path = dir.path().join(name);
            fs::write(&path, "").unwrap();
            assert!(Source::new(&path, dir.path()).err().unwrap().contains("expected"), "{name}");
        }
        assert!(
            Source::new(&dir.path().join("no_wsh.c"), dir.path()).err().unwrap().contains("No such file")
        );
        assert!(Source::new(dir.path(), dir.path()).err().unwrap().contains("Cargo.toml"));
    }
}
