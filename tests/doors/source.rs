//! Reads Rust as tokens, and finds every path in them: grouped uses spread out, `super` resolved, test modules left out.

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    PathSeparator,
    Sign(char),
}

struct At {
    token: Token,
    line: usize,
}

/// One path of a source.
pub(crate) struct Found {
    pub(crate) line: usize,
    /// As written.
    pub(crate) path: Vec<String>,
    /// Its segments from the crate's root, where it is written with `crate`, `super` or the crate's name.
    pub(crate) in_crate: Option<Vec<String>>,
    /// Called on a value: `value.path()`.
    pub(crate) is_method: bool,
    /// In a `pub use`.
    pub(crate) is_re_export: bool,
}

pub(crate) struct Source {
    /// Its path under `src/`.
    pub(crate) file: String,
    /// `keys/cache.rs` is [keys, cache].
    pub(crate) module: Vec<String>,
    /// The modules that it declares under `cfg(test)`, in files of their own.
    pub(crate) test_modules: Vec<Vec<String>>,
    pub(crate) paths: Vec<Found>,
}

impl Source {
    pub(crate) fn read(file: &str, text: &str) -> Self {
        let segments = file.trim_end_matches(".rs").trim_end_matches("/mod").split('/');
        let mut source = Self {
            file: file.to_owned(),
            module: segments.map(str::to_owned).collect(),
            test_modules: Vec::new(),
            paths: Vec::new(),
        };
        Reader { tokens: tokens(text), at: 0, depth: 0, inner: Vec::new(), in_pub_use: false, source: &mut source }
            .read();
        source
    }

    /// The room that it lies in: the first segment of its module.
    pub(crate) fn room(&self) -> &str {
        &self.module[0]
    }

    fn is_crate_root(&self) -> bool {
        matches!(self.file.as_str(), "lib.rs" | "main.rs")
    }
}

/// Keywords that a path written `::name` can follow: no part of it.
const BEFORE_A_PATH: [&str; 17] = [
    "as", "break", "dyn", "else", "for", "if", "impl", "in", "let", "match", "move", "mut", "ref", "return", "use",
    "where", "while",
];

/// Walks the tokens once.
struct Reader<'a> {
    tokens: Vec<At>,
    at: usize,
    depth: usize,
    /// The modules written inside this file that are open here, and the depth of their braces.
    inner: Vec<(String, usize)>,
    in_pub_use: bool,
    source: &'a mut Source,
}

impl Reader<'_> {
    fn read(mut self) {
        while let Some(At { token, .. }) = self.tokens.get(self.at) {
            match token {
                Token::Sign('#') if self.is(1, "[") && self.is(2, "cfg") && self.is(4, "test") && self.is(5, ")") => {
                    self.at += 7;
                    self.skip_test_module();
                }
                Token::Sign('{') => self.step(|depth| depth + 1),
                Token::Sign('}') => {
                    self.step(|depth| depth.saturating_sub(1));
                    self.inner.retain(|(_, depth)| *depth <= self.depth);
                }
                Token::Sign(';') => {
                    self.in_pub_use = false;
                    self.at += 1;
                }
                Token::Word(word) if word == "mod" && self.is(2, "{") => {
                    if let Some(Token::Word(name)) = self.peek(1) {
                        self.inner.push((name.clone(), self.depth + 1));
                    }
                    self.at += 2;
                }
                Token::Word(word) if word == "pub" => self.visibility(),
                Token::Word(word) if word == "fn" => self.at += 2,
                Token::Word(word) if BEFORE_A_PATH.contains(&word.as_str()) => self.at += 1,
                Token::Word(_) => self.path(),
                _ => self.at += 1,
            }
        }
    }

    fn step(&mut self, change: impl Fn(usize) -> usize) {
        self.depth = change(self.depth);
        self.at += 1;
    }

    fn peek(&self, ahead: usize) -> Option<&Token> {
        self.tokens.get(self.at + ahead).map(|at| &at.token)
    }

    fn is(&self, ahead: usize, expected: &str) -> bool {
        match self.peek(ahead) {
            Some(Token::Word(word)) => word == expected,
            Some(Token::PathSeparator) => expected == "::",
            Some(Token::Sign(sign)) => expected.chars().eq([*sign]),
            None => false,
        }
    }

    /// `pub`, `pub(crate)`, `pub(in crate::x)`: no use of what it names.
    fn visibility(&mut self) {
        self.at += 1;
        if self.is(0, "(") && ["crate", "super", "self", "in"].iter().any(|word| self.is(1, word)) {
            while !self.is(0, ")") && self.peek(0).is_some() {
                self.at += 1;
            }
            self.at += 1;
        }
        self.in_pub_use = self.is(0, "use");
    }

    /// After `#[cfg(test)]`: further attributes, then `mod name;` or `mod name { … }`. Anything else is read as product code.
    fn skip_test_module(&mut self) {
        let start = self.at;
        while self.is(0, "#") {
            while !self.is(0, "]") && self.peek(0).is_some() {
                self.at += 1;
            }
            self.at += 1;
        }
        if !self.is(0, "mod") {
            self.at = start;
            return;
        }
        if let (Some(Token::Word(name)), true) = (self.peek(1), self.is(2, ";")) {
            let root: &[String] = if self.source.is_crate_root() { &[] } else { &self.source.module };
            let module = root.iter().chain([name]).cloned().collect();
            self.source.test_modules.push(module);
            self.at += 3;
            return;
        }
        self.at += 2;
        let mut open = 0_usize;
        while let Some(token) = self.peek(0) {
            match token {
                Token::Sign('{') => open += 1,
                Token::Sign('}') => open -= 1,
                _ => {}
            }
            self.at += 1;
            if open == 0 {
                return;
            }
        }
    }

    fn path(&mut self) {
        let before = self.at.checked_sub(1).map(|before| self.tokens[before].token.clone());
        let is_method = before == Some(Token::Sign('.'));
        let line = self.tokens[self.at].line;
        let first = self.at;
        let mut paths = Vec::new();
        self.tree(&[], &mut paths);
        if self.at == first {
            self.at += 1; // a sign that no tree begins with
        }
        for path in paths {
            let in_crate = self.path_in_crate(&path);
            let is_re_export = self.in_pub_use;
            self.source.paths.push(Found { line, path, in_crate, is_method, is_re_export });
        }
    }

    /// A path or a tree of them, as in `a::{b, c::{self, d as e}, f::*}`, spread out.
    fn tree(&mut self, prefix: &[String], paths: &mut Vec<Vec<String>>) {
        let mut path = prefix.to_vec();
        loop {
            match self.peek(0) {
                Some(Token::Word(word)) => {
                    if word != "self" || path.is_empty() {
                        path.push(word.clone());
                    }
                    self.at += 1;
                }
                Some(Token::Sign('*')) if !path.is_empty() => {
                    path.push("*".to_owned());
                    self.at += 1;
                    break;
                }
                Some(Token::Sign('{')) if !path.is_empty() => {
                    self.at += 1;
                    while !self.is(0, "}") && self.peek(0).is_some() {
                        let before = self.at;
                        self.tree(&path, paths);
                        // The name after `as`, commas, and what is no tree at all.
                        while !self.is(0, "}") && !self.is(0, ",") && self.peek(0).is_some() {
                            self.at += 1;
                        }
                        if self.is(0, ",") || self.at == before {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                _ => break,
            }
            if self.is(0, "::") {
                self.at += 1;
            } else {
                break;
            }
        }
        if path.len() > prefix.len() || !prefix.is_empty() {
            paths.push(path);
        }
    }

    /// The path from the crate's root; `None` for one that starts at another crate or at a name in scope.
    fn path_in_crate(&self, path: &[String]) -> Option<Vec<String>> {
        let path = if path.len() > 1 && path[0] == "self" { &path[1..] } else { path };
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "containarium" if !rest.is_empty() => Some(rest.to_vec()),
            "super" => {
                let mut module: Vec<String> =
                    if self.source.is_crate_root() { Vec::new() } else { self.source.module.clone() };
                module.extend(self.inner.iter().map(|(name, _)| name.clone()));
                let up = path.iter().take_while(|segment| *segment == "super").count();
                module.truncate(module.len().saturating_sub(up));
                module.extend(path[up..].iter().cloned());
                Some(module)
            }
            _ => None,
        }
    }
}

/// Comments, strings, characters, lifetimes and numbers are left out: only what can be part of a path, and signs.
fn tokens(text: &str) -> Vec<At> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = string(rest) {
            length
        } else if first == '\'' {
            quote(rest)
        } else if first.is_ascii_digit() {
            word(rest)
        } else if first == '_' || first.is_alphabetic() {
            let raw = if rest.starts_with("r#") { 2 } else { 0 };
            let length = raw + word(&rest[raw..]);
            tokens.push(At { token: Token::Word(rest[raw..length].to_owned()), line });
            length
        } else if rest.starts_with("::") {
            tokens.push(At { token: Token::PathSeparator, line });
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(At { token: Token::Sign(first), line });
            }
            first.len_utf8()
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

fn word(text: &str) -> usize {
    text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len())
}

/// They nest.
fn block_comment(text: &str) -> usize {
    let (mut open, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            open += 1;
            at += 2;
        } else if text[at..].starts_with("*/") {
            open -= 1;
            at += 2;
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
        if open == 0 {
            break;
        }
    }
    at
}

/// The length of a string literal that begins here, of any kind: `""`, `b""`, `c""`, `r#""#`, …
fn string(text: &str) -> Option<usize> {
    let prefix = ["", "b", "c", "r", "br", "cr"].into_iter().rev().find(|prefix| {
        let after = text.strip_prefix(prefix).unwrap_or_default();
        after.starts_with('"') || (prefix.ends_with('r') && after.trim_start_matches('#').starts_with('"'))
    })?;
    let after = &text[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = after.find('"')?;
        let end = format!("\"{}", &after[..hashes]);
        let body = prefix.len() + hashes + 1;
        return Some(text[body..].find(&end).map_or(text.len(), |at| body + at + end.len()));
    }
    let mut escaped = false;
    for (at, c) in after.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(prefix.len() + at + 1),
            _ => {}
        }
    }
    Some(text.len())
}

/// A character literal, or a lifetime's name.
fn quote(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((after, _))) => text[after + 1..].find('\'').map_or(text.len(), |at| after + 1 + at + 1),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1 + word(&text[1..]),
    }
}
