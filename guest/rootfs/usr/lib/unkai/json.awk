# Prints a JSON document as one line per leaf: its path, a tab, and its value with printf %b's escapes.
#   {"public_keys": {"mine": "ssh-rsa A\n"}}   becomes   public_keys/mine<TAB>ssh-rsa A\n

function fail(why) {
	print "json: " why > "/dev/stderr"
	failed = 1
	exit 1
}

function next_token() {
	if (!match(text, /^[ \t\r\n]*("([^"\\]|\\.)*"|[-+0-9.eE]+|true|false|null|[][{}:,])/))
		fail("unexpected text")
	token = substr(text, 1, RLENGTH)
	text = substr(text, RLENGTH + 1)
	sub(/^[ \t\r\n]+/, "", token)
}

function octal(byte) { return sprintf("\\0%03o", byte) }

function hex(digits,   i, n) {
	n = 0
	digits = tolower(digits)
	for (i = 1; i <= length(digits); i++)
		n = n * 16 + index("0123456789abcdef", substr(digits, i, 1)) - 1
	return n
}

function utf8(c) {
	if (c < 128) return octal(c)
	if (c < 2048) return octal(192 + int(c / 64)) octal(128 + c % 64)
	if (c < 65536) return octal(224 + int(c / 4096)) octal(128 + int(c / 64) % 64) octal(128 + c % 64)
	return octal(240 + int(c / 262144)) octal(128 + int(c / 4096) % 64) octal(128 + int(c / 64) % 64) octal(128 + c % 64)
}

# Most of JSON's escapes are printf's; the others are turned into those.
function unquoted(s,   out, c, code, low) {
	s = substr(s, 2, length(s) - 2)
	out = ""
	while (match(s, /\\./)) {
		out = out substr(s, 1, RSTART - 1)
		c = substr(s, RSTART + 1, 1)
		s = substr(s, RSTART + 2)
		if (c == "u") {
			code = hex(substr(s, 1, 4))
			s = substr(s, 5)
			if (code >= 55296 && code < 56320 && substr(s, 1, 2) == "\\u") {
				low = hex(substr(s, 3, 4))
				s = substr(s, 7)
				code = 65536 + (code - 55296) * 1024 + low - 56320
			}
			out = out utf8(code)
		} else if (c == "\"" || c == "/")
			out = out c
		else
			out = out "\\" c
	}
	return out s
}

function below(path, name) { return path == "" ? name : path "/" name }

function value(path,   name, n) {
	next_token()
	if (token == "{") {
		next_token()
		while (token != "}") {
			if (token == ",") next_token()
			name = unquoted(token)
			next_token()
			if (token != ":") fail("a member of an object lacks its colon")
			value(below(path, name))
			next_token()
			if (token != "," && token != "}") fail("an object does not end")
		}
	} else if (token == "[") {
		n = 0
		# An empty list closes at once; what follows otherwise is put back.
		if (match(text, /^[ \t\r\n]*\]/)) {
			text = substr(text, RLENGTH + 1)
			return
		}
		do {
			value(below(path, n++))
			next_token()
		} while (token == ",")
		if (token != "]") fail("a list does not end")
	} else if (substr(token, 1, 1) == "\"")
		print path "\t" unquoted(token)
	else
		print path "\t" token
}

{ text = text $0 "\n" }
END { if (!failed) value("") }
