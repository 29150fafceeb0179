//! Reads the paths of a Rust source: enough of its grammar for that, and no more.

/// Something that a source names.
#[derive(Debug, PartialEq, Eq)]
pub enum Mention {
    /// A room of ours: the first segment below the crate's root; empty for the root itself.
    Ours(String),
    /// The first segment of any other path: an external crate, or a name in scope.
    External(String),
}

/// What the source of the module `modules` names.
pub fn mentions(modules: &[&str], source: &str) -> Vec<Mention> {
    let tokens = tokens(source);
    let mut reader = Reader { tokens: &tokens, modules, inside: Vec::new(), found: Vec::new() };
    reader.read();
    reader.found
}

struct Reader<'s> {
    tokens: &'s [String],
    modules: &'s [&'s str],
    /// The braces that are open; true for an inline module's.
    inside: Vec<bool>,
    found: Vec<Mention>,
}

impl Reader<'_> {
    fn read(&mut self) {
        let mut at = 0;
        let mut using = false;
        while at < self.tokens.len() {
            match self.token(at) {
                "{" => self.inside.push(at >= 2 && self.token(at - 2) == "mod"),
                "}" => drop(self.inside.pop()),
                ";" => using = false,
                "use" => using = self.token(at + 1) != "<", // `use<'a>` is a bound
                "extern" => using = self.token(at + 1) == "crate",
                "pub" if self.token(at + 1) == "(" => {
                    at += 2; // pub(crate), pub(in crate::room): a visibility names nothing
                    while !matches!(self.token(at), ")" | "") {
                        at += 1;
                    }
                }
                token
                    if is_word(token)
                        && self.starts_a_path(at)
                        && !(using && token == "crate" && self.is_extern(at)) =>
                {
                    let depth = self.modules.len() + self.inside.iter().filter(|module| **module).count();
                    at = self.path(at, depth, using);
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// Reads the path at `at` and returns where it ends. `depth` is how many modules deep it starts.
    fn path(&mut self, at: usize, depth: usize, using: bool) -> usize {
        let first = self.token(at);
        let goes_on = self.token(at + 1) == "::";
        match first {
            "crate" | "token_wallet" => self.below_root(at + 1),
            "super" if depth == 1 => self.below_root(at + 1),
            "super" if goes_on && self.token(at + 2) == "super" => self.path(at + 2, depth - 1, using),
            "self" | "super" => self.rest(at + 1),
            _ if goes_on || using => {
                self.found.push(Mention::External(first.to_owned()));
                self.rest(at + 1)
            }
            _ => at + 1,
        }
    }

    /// Reads what follows the crate's root: one room, or a group of them.
    fn below_root(&mut self, at: usize) -> usize {
        if self.token(at) != "::" {
            self.found.push(Mention::Ours(String::new()));
            return at;
        }
        if self.token(at + 1) != "{" {
            self.found.push(Mention::Ours(self.token(at + 1).to_owned()));
            return self.rest(at + 2);
        }
        let mut at = at + 2;
        while !matches!(self.token(at), "}" | "") {
            if self.token(at) != "," {
                self.found.push(Mention::Ours(self.token(at).to_owned()));
            }
            at = self.rest(at + 1);
        }
        at + 1
    }

    /// Skips the rest of a path: segments, a renaming, a whole group.
    fn rest(&self, mut at: usize) -> usize {
        while self.token(at) == "::" {
            at += 1;
            if self.token(at) == "{" {
                let mut open = 0;
                loop {
                    match self.token(at) {
                        "{" => open += 1,
                        "}" => open -= 1,
                        _ => {}
                    }
                    at += 1;
                    if open == 0 || at >= self.tokens.len() {
                        return at;
                    }
                }
            }
            if !is_word(self.token(at)) && self.token(at) != "*" {
                return at; // `::<T>`: its arguments are paths of their own
            }
            at += 1;
        }
        if self.token(at) == "as" { at + 2 } else { at }
    }

    /// Whether the word at `at` begins a path: nothing before it that it would be a part of.
    fn starts_a_path(&self, at: usize) -> bool {
        let before = if at == 0 { "" } else { self.token(at - 1) };
        let leading = before == "::" && (at < 2 || !(is_word(self.token(at - 2)) || self.token(at - 2) == ">"));
        leading || !matches!(before, "::" | "." | "mod" | "fn")
    }

    /// Whether the word at `at` is the second of `extern crate`.
    fn is_extern(&self, at: usize) -> bool {
        at > 0 && self.token(at - 1) == "extern"
    }

    fn token(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", String::as_str)
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Words, `::`, and single characters; no space, comment, literal or lifetime.
fn tokens(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&first) = chars.get(at) {
        let next = chars.get(at + 1).copied().unwrap_or(' ');
        match first {
            '/' if next == '/' => at = find(&chars, at, "\n"),
            '/' if next == '*' => at = after_comment(&chars, at),
            '"' => at = after_text(&chars, at),
            '\'' => at = after_quote(&chars, at),
            ':' if next == ':' => {
                tokens.push("::".to_owned());
                at += 2;
            }
            _ if first.is_alphanumeric() || first == '_' => {
                let end = (at..chars.len()).find(|&end| !(chars[end].is_alphanumeric() || chars[end] == '_'));
                let end = end.unwrap_or(chars.len());
                let word: String = chars[at..end].iter().collect();
                let raw = matches!(word.as_str(), "r" | "br" | "cr");
                let hashes = chars[end..].iter().take_while(|char| **char == '#').count();
                if raw && chars.get(end + hashes) == Some(&'"') {
                    let closing: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
                    at = find(&chars, end + hashes + 1, &closing);
                    continue;
                }
                tokens.push(word);
                at = end;
            }
            _ => {
                if !first.is_whitespace() {
                    tokens.push(first.to_string());
                }
                at += 1;
            }
        }
    }
    tokens
}

/// Where the first `what` at or after `from` ends.
fn find(chars: &[char], from: usize, what: &str) -> usize {
    let what: Vec<char> = what.chars().collect();
    (from..chars.len()).find(|&at| chars[at..].starts_with(&what)).map_or(chars.len(), |at| at + what.len())
}

/// Block comments nest.
fn after_comment(chars: &[char], mut at: usize) -> usize {
    let mut open = 0;
    while at < chars.len() {
        match chars.get(at..at + 2) {
            Some(['/', '*']) => (open, at) = (open + 1, at + 2),
            Some(['*', '/']) => (open, at) = (open - 1, at + 2),
            _ => at += 1,
        }
        if open == 0 {
            break;
        }
    }
    at
}

fn after_text(chars: &[char], start: usize) -> usize {
    let mut at = start + 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// After a character literal, or after a lifetime.
fn after_quote(chars: &[char], start: usize) -> usize {
    match (chars.get(start + 1), chars.get(start + 2)) {
        (Some('\\'), _) => find(chars, start + 3, "'"),
        (_, Some('\'')) => start + 3,
        _ => (start + 1..chars.len())
            .find(|&at| !(chars[at].is_alphanumeric() || chars[at] == '_'))
            .unwrap_or(chars.len()),
    }
}
