//! `wshd new NAME`: creates a directory with a handler that builds and passes its test. All files, including the
//! interface, are embedded in this executable, so no installed header is needed. Overwrites nothing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::interface::{CRATE, HEADERS};
use super::{print, shell};
use crate::exit::Exit;

/// The command line.
#[derive(Debug, Args)]
pub struct New {
    /// The handler's name, and the directory to create; the resource is /NAME
    #[arg(value_name = "NAME", value_parser = name)]
    path: PathBuf,
    /// The language
    #[arg(short, long, value_enum, default_value_t = Lang::C)]
    lang: Lang,
    /// Callbacks on the event loop, or a thread for each connection
    #[arg(short, long, value_enum, default_value_t = Style::Events)]
    style: Style,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Lang {
    C,
    #[value(name = "c++", alias = "cpp")]
    Cpp,
    Rust,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Style {
    Events,
    Blocking,
}

/// A file of the project: its path, and its text with `@WORDS@` to replace.
type Template = (String, &'static str);

impl New {
    /// Runs the command.
    pub fn run(self) -> Result<ExitCode, String> {
        let dir = self.path.display();
        fs::create_dir(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => format!("{dir} exists: choose another name"),
            _ => format!("{dir}: {error}"),
        })?;
        self.fill_directory().inspect_err(|_| {
            let _ = fs::remove_dir_all(&self.path); // it was created above
        })?;
        let (quoted, wshd) =
            (shell::quoted(&dir.to_string()), this_program().map_err(|why| why.to_string())?);
        print(&format!("{dir}: created. To test it, and to serve it:\n\n    cd {quoted}\n    make test"));
        print(&format!("    {} run {}\n", shell::quoted(&wshd), self.runs()));
        Ok(Exit::Ok.into())
    }

    fn fill_directory(&self) -> Result<(), String> {
        let words = self.words().map_err(|error| format!("{}: {error}", self.path.display()))?;
        for (path, text) in self.templates() {
            let path = self.path.join(path);
            write(&path, &fill(text, &words)).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The handler's source.
    fn source(&self) -> String {
        match self.lang {
            Lang::C => format!("{}_wsh.c", self.name()),
            Lang::Cpp => format!("{}_wsh.cc", self.name()),
            Lang::Rust => "src/lib.rs".to_owned(),
        }
    }

    /// The argument of `wshd run`.
    fn runs(&self) -> String {
        match self.lang {
            Lang::C | Lang::Cpp => self.source(),
            Lang::Rust => ".".to_owned(),
        }
    }

    fn templates(&self) -> Vec<Template> {
        let handler = match (self.lang, self.style) {
            (Lang::C, Style::Events) => include_str!("templates/event.c.in"),
            (Lang::C, Style::Blocking) => include_str!("templates/blocking.c.in"),
            (Lang::Cpp, Style::Events) => include_str!("templates/event.cc.in"),
            (Lang::Cpp, Style::Blocking) => include_str!("templates/blocking.cc.in"),
            (Lang::Rust, Style::Events) => include_str!("templates/event.rs.in"),
            (Lang::Rust, Style::Blocking) => include_str!("templates/blocking.rs.in"),
        };
        let makefile = match self.lang {
            Lang::C => include_str!("templates/Makefile.c.in"),
            Lang::Cpp => include_str!("templates/Makefile.cc.in"),
            Lang::Rust => include_str!("templates/Makefile.rust.in"),
        };
        let commands = include_str!("templates/compile_commands.json.in");
        let file = |path: &str, text| (path.to_owned(), text);
        let mut templates = vec![
            (self.source(), handler),
            file("Makefile", makefile),
            (format!("{}.test", self.name()), include_str!("templates/conversation.test.in")),
            file("README.md", include_str!("templates/README.md.in")),
            file(".gitignore", include_str!("templates/gitignore.in")),
        ];
        let header = |(name, text): &(&str, _)| (format!("include/{name}"), *text);
        match self.lang {
            Lang::C => templates.extend(HEADERS.iter().take(1).map(header)),
            Lang::Cpp => templates.extend(HEADERS.iter().map(header)),
            Lang::Rust => {
                templates.push(file("Cargo.toml", include_str!("templates/Cargo.toml.in")));
                let vendored = |(name, text): &(&str, _)| (format!("ws-handler/{name}"), *text);
                templates.extend(CRATE.iter().map(vendored));
                return templates;
            }
        }
        templates.push(file("compile_commands.json", commands));
        templates
    }

    /// What stands for the words of the templates.
    fn words(&self) -> io::Result<[(&'static str, String); 11]> {
        let (language, vendored, compiler) = match self.lang {
            Lang::C => ("C", "include/ws_handler.h", "cc"),
            Lang::Cpp => ("C++", "include/", "c++"),
            Lang::Rust => ("Rust", "ws-handler/", ""),
        };
        let style = match self.style {
            Style::Events => "event",
            Style::Blocking => "blocking",
        };
        let dir = std::path::absolute(&self.path)?;
        let wshd = shell::quoted(&this_program()?);
        Ok([
            ("@NAME@", self.name()),
            ("@IDENT@", self.name().replace('-', "_")),
            ("@SOURCE@", self.source()),
            ("@RUN@", self.runs()),
            ("@DIR_IN_JSON@", serde_json::Value::from(dir.to_string_lossy()).to_string()),
            ("@LANGUAGE@", language.to_owned()),
            ("@STYLE@", style.to_owned()),
            ("@VENDORED@", vendored.to_owned()),
            ("@COMPILER@", compiler.to_owned()),
            ("@WSHD_IN_MAKE@", wshd.replace('$', "$$").replace('#', "\\#")),
            ("@WSHD@", wshd),
        ])
    }
}

/// The command that runs this program in a shell: its name if PATH finds it, else its path.
fn this_program() -> io::Result<String> {
    let own = std::env::current_exe()?.canonicalize()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("wshd")).find(|file| file.is_file());
    match found.and_then(|file| file.canonicalize().ok()) == Some(own.clone()) {
        true => Ok("wshd".to_owned()),
        false => Ok(own.to_string_lossy().into_owned()),
    }
}

fn fill(template: &str, words: &[(&str, String)]) -> String {
    words.iter().fold(template.to_owned(), |text, (word, value)| text.replace(word, value))
}

/// Writes a new file.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    File::create_new(path)?.write_all(text.as_bytes())
}

/// Accepts names that are valid as a resource, a file, a C string and a package.
fn name(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase());
    match begins && name.len() <= 64 && name.bytes().all(is_plain) && !name.ends_with("_wsh") {
        true => Ok(path),
        false => {
            Err("expected a name of up to 64 lower-case letters, digits, - and _, that begins with a letter \
                      and does not end in _wsh; directories may stand before it"
                .to_owned())
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_resources_and_packages() {
        for right in ["chat", "a1", "my-chat_2", "/tmp/x/chat", "../chat"] {
            assert!(name(right).is_ok(), "{right}");
        }
        for wrong in ["", "1a", "Chat", "a b", "chat_wsh", "a/..", "caf\u{e9}", "-x", &"a".repeat(65)] {
            assert!(name(wrong).is_err_and(|error| error.starts_with("expected")), "{wrong}");
        }
    }

    #[test]
    fn all_words_of_all_templates_are_filled_in() {
        for lang in Lang::value_variants() {
            for style in Style::value_variants() {
                let new = New { path: "a \"$b\"/my-chat".into(), lang: *lang, style: *style };
                let words = new.words().unwrap();
                for (path, text) in
                    new.templates().into_iter().filter(|(path, _)| !path.contains("ws-handler/"))
                {
                    let text = fill(text, &words);
                    assert!(!text.contains('@') || path == "Makefile", "{path}: {text}");
                    assert!(path != "Makefile" || text.contains("WSHD = "), "{text}");
                    assert!(!words.iter().any(|(word, _)| text.contains(word)), "{path}");
                    if path.ends_with(".json") {
                        let commands: serde_json::Value = serde_json::from_str(&text).unwrap();
                        assert!(commands[0]["directory"].as_str().unwrap().ends_with("/a \"$b\"/my-chat"));
                    }
                }
            }
        }
    }
}
