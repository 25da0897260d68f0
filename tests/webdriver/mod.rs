//! A headless Chromium, driven by the W3C WebDriver protocol.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// No step takes longer unless something is wrong.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Where WebDriver puts the reference to an element; the name is the one of the standard, 12.2.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys as WebDriver's 17.4.2 encodes them.
pub const ENTER: &str = "\u{e007}";
pub const CONTROL: &str = "\u{e009}";

/// One browser with one window. Ended when dropped, with all of its processes.
pub struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts chromedriver on a free port and a browser with a fresh profile. `width` and `height` are those of the
    /// page.
    pub fn start(width: u32, height: u32) -> Self {
        // It ends if another process takes the port that it has picked.
        let started = (0..5).find_map(|_| start_driver());
        let (driver, port) = started.expect("chromedriver says its port");
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT * 2))
            .proxy(None)
            .build()
            .into();
        let profile = tempfile::tempdir().unwrap();
        let base = format!("http://127.0.0.1:{port}/session");
        let mut browser = Self { driver, agent, session: base.clone(), _profile: profile };
        let profile = browser._profile.path().to_str().unwrap();
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            &format!("--user-data-dir={profile}"),
        ];
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {
                "args": arguments,
                "mobileEmulation": {
                    "deviceMetrics": {"width": width, "height": height, "pixelRatio": 1, "mobile": false},
                },
            },
        }}});
        let session = browser.post("", capabilities);
        browser.session = format!("{base}/{}", session["sessionId"].as_str().unwrap());
        // Whatever breaks the page's policy is collected from the first moment on.
        browser.post(
            "/goog/cdp/execute",
            json!({"cmd": "Page.addScriptToEvaluateOnNewDocument", "params": {"source":
                "window.violations = []; document.addEventListener('securitypolicyviolation', \
                 (event) => window.violations.push(event.violatedDirective + ' ' + event.blockedURI));"}}),
        );
        browser
    }

    pub fn open(&self, url: &str) {
        self.post("/url", json!({"url": url}));
    }

    /// What `expression`, JavaScript, is worth in the page.
    pub fn eval(&self, expression: &str) -> Value {
        self.post("/execute/sync", json!({"script": format!("return {expression};"), "args": []}))
    }

    pub fn text(&self, selector: &str) -> String {
        let text = self.post("/execute/sync", json!({
            "script": "return document.querySelector(arguments[0])?.textContent ?? '';", "args": [selector],
        }));
        text.as_str().unwrap().to_owned()
    }

    /// Waits until `expression` is true in the page.
    #[track_caller]
    pub fn wait(&self, expression: &str) {
        let begun = Instant::now();
        while self.eval(&format!("Boolean({expression})")) != true {
            let page = || self.text("#list");
            assert!(begun.elapsed() < TIMEOUT, "still not so: {expression}; the page lists: {}", page());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn click(&self, selector: &str) {
        self.post(&format!("/element/{}/click", self.find(selector)), json!({}));
    }

    /// Types into an element, as it is: what is in it stays.
    pub fn type_into(&self, selector: &str, text: &str) {
        self.post(&format!("/element/{}/value", self.find(selector)), json!({"text": text}));
    }

    /// Empties a field, then types.
    pub fn fill(&self, selector: &str, text: &str) {
        self.post(&format!("/element/{}/clear", self.find(selector)), json!({}));
        self.type_into(selector, text);
    }

    /// What went to the browser's console since the last call, errors and warnings.
    pub fn console(&self) -> Vec<String> {
        let log = self.post("/se/log", json!({"type": "browser"}));
        let entries = log.as_array().unwrap().iter();
        let bad = entries.filter(|entry| entry["level"] == "SEVERE" || entry["level"] == "WARNING");
        bad.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    fn find(&self, selector: &str) -> String {
        let element = self.post("/element", json!({"using": "css selector", "value": selector}));
        element[ELEMENT].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn post(&self, path: &str, body: Value) -> Value {
        let url = format!("{}{path}", self.session);
        let mut reply = self.agent.post(&url).send_json(&body).unwrap();
        let status = reply.status();
        let mut reply: Value = reply.body_mut().read_json().unwrap();
        assert!(status.is_success(), "{path} {body}: {}", reply["value"]["message"]);
        reply["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.agent.delete(&self.session).call();
        // The group is the driver's own: it holds the browser too.
        let group = nix::unistd::Pid::from_raw(self.driver.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.driver.wait();
    }
}

/// Starts chromedriver, which says on which port it listens; `None` if it ends before.
fn start_driver() -> Option<(Child, u16)> {
    let mut driver = Command::new("chromedriver")
        .arg("--port=0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("chromedriver is needed (Debian: chromium-driver)");
    let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let (sender, port) = mpsc::channel();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if let Some((_, port)) = line.split_once("started successfully on port ") {
                let _ = sender.send(port.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap());
            }
        }
    });
    let Ok(port) = port.recv_timeout(TIMEOUT) else {
        let _ = driver.kill();
        let _ = driver.wait();
        return None;
    };
    Some((driver, port))
}
