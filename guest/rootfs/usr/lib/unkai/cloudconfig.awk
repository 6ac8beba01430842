# Reads the part of cloud-config that the guest honours, and prints one line per wish, its fields parted
# by tabs and escaped for printf %b:
#   hostname NAME | password WORD | ssh_pwauth BOOL | key LINE | run SHELL | ignored KEY
#   file PATH MODE OWNER ENCODING APPEND CONTENT
# It knows block lists, literal and folded blocks, quoted words and [flow, lists]: not all of YAML.

# replaced is gsub without its rules for backslashes, in which awks differ.
function replaced(s, what, with,   out, at) {
	out = ""
	while (at = index(s, what)) {
		out = out substr(s, 1, at - 1) with
		s = substr(s, at + length(what))
	}
	return out s
}

function escaped(s) {
	return replaced(replaced(replaced(s, "\\", "\\\\"), "\n", "\\n"), "\t", "\\t")
}

function indent(s) { match(s, /^ */); return RLENGTH }

function unquoted(s,   out, c) {
	out = ""
	while (match(s, /\\./)) {
		c = substr(s, RSTART + 1, 1)
		out = out substr(s, 1, RSTART - 1) (c == "n" ? "\n" : c == "t" ? "\t" : c)
		s = substr(s, RSTART + 2)
	}
	return out s
}

function plain(s) {
	sub(/^[ \t]+/, "", s)
	sub(/[ \t\r]+$/, "", s)
	if (s ~ /^".*"$/) {
		s = unquoted(substr(s, 2, length(s) - 2))
	} else if (s ~ /^'.*'$/) {
		s = substr(s, 2, length(s) - 2)
		s = replaced(s, "''", "'")
	} else
		sub(/[ \t]+#.*$/, "", s)
	return s
}

function shell_word(s) { return "'" replaced(s, "'", "'\\''") "'" }

# words turns [a, "b c"] into a command line.
function words(s,   out, w) {
	sub(/^[ \t]*\[/, "", s)
	sub(/\][ \t\r]*$/, "", s)
	out = ""
	while (match(s, /^[ \t]*("([^"\\]|\\.)*"|'([^']|'')*'|[^,]+)[ \t]*,?/)) {
		w = substr(s, 1, RLENGTH)
		s = substr(s, RLENGTH + 1)
		sub(/,$/, "", w)
		out = out (out == "" ? "" : " ") shell_word(plain(w))
	}
	return out
}

# scalar reads a value that began on line at (rest is what stood there), whose parent has the given
# indent. It leaves "after" at the first line that is not its own.
function scalar(at, rest, parent,   out, keep, fold, base, last, line) {
	after = at + 1
	sub(/^[ \t]+/, "", rest)
	if (rest !~ /^[|>][-+0-9]*[ \t\r]*(#.*)?$/) {
		# A plain word may go on in deeper lines.
		out = rest
		while (rest !~ /^["'\[]/ && after <= n && lines[after] ~ /[^ \t\r]/ && indent(lines[after]) > parent && lines[after] !~ /^ *- /) {
			line = lines[after++]
			sub(/^ +/, "", line)
			out = out " " line
		}
		return plain(out)
	}
	fold = rest ~ /^>/
	keep = rest !~ /-/
	out = ""
	base = -1
	last = after
	for (; after <= n; after++) {
		line = lines[after]
		sub(/\r$/, "", line)
		if (line !~ /[^ ]/) { out = out "\n"; continue }
		if (indent(line) <= parent) break
		if (base < 0) base = indent(line)
		out = out substr(line, base + 1) (fold ? " " : "\n")
	}
	sub(/[ \n]+$/, "", out)
	return keep ? out "\n" : out
}

function file(path, mode, owner, encoding, append, content) {
	if (path != "")
		print "file\t" escaped(path) "\t" (mode == "" ? "0644" : mode) "\t" (owner == "" ? "root:root" : owner) \
			"\t" (encoding == "" ? "plain" : encoding) "\t" (append == "" ? "false" : append) "\t" escaped(content)
}

# list walks the items of the block list that starts at line i.
function list(key, i,   line, dash, rest, name, item, nested, path, mode, owner, encoding, append, content) {
	dash = -1
	while (i <= n) {
		line = lines[i]
		if (line !~ /[^ \t\r]/ || line ~ /^[ \t]*#/) { i++; continue }
		if (line ~ /^[^ -]/) break
		if (line ~ /^ *-([ \r]|$)/ && (dash < 0 || indent(line) == dash)) {
			dash = indent(line)
			if (key == "write_files") {
				file(path, mode, owner, encoding, append, content)
				path = mode = owner = encoding = append = content = ""
				sub(/-/, " ", line)
				lines[i] = line
				if (line !~ /[^ \r]/) i++
				continue
			}
			rest = line
			sub(/^ *- */, "", rest)
			if (rest ~ /^\[/) {
				print "run\t" escaped(words(rest))
				i++
			} else if (rest ~ /^- / || rest == "") {
				# A list of words, one a line.
				nested = ""
				line = rest == "" ? "" : rest
				if (line != "") nested = shell_word(plain(substr(line, 3)))
				for (i++; i <= n && indent(lines[i]) > dash; i++) {
					item = lines[i]
					sub(/^ *- */, "", item)
					nested = nested (nested == "" ? "" : " ") shell_word(plain(item))
				}
				print "run\t" escaped(nested)
			} else {
				item = scalar(i, rest, dash)
				print (key == "ssh_authorized_keys" ? "key\t" : "run\t") escaped(item)
				i = after
			}
		} else if (key == "write_files" && match(line, /^ *[a-z_]+:/)) {
			name = substr(line, 1, RLENGTH - 1)
			gsub(/ /, "", name)
			item = scalar(i, substr(line, RLENGTH + 1), indent(line))
			i = after
			if (name == "path") path = item
			else if (name == "permissions") mode = item
			else if (name == "owner") owner = item
			else if (name == "encoding") encoding = item
			else if (name == "append") append = item
			else if (name == "content") content = item
		} else
			i++
	}
	if (key == "write_files") file(path, mode, owner, encoding, append, content)
}

{ lines[++n] = $0 }

END {
	for (i = 1; i <= n; i++) {
		if (!match(lines[i], /^[a-zA-Z_]+:/)) continue
		key = substr(lines[i], 1, RLENGTH - 1)
		rest = substr(lines[i], RLENGTH + 1)
		if (key == "hostname" || key == "fqdn") print "hostname\t" escaped(scalar(i, rest, 0))
		else if (key == "password" || key == "ssh_pwauth") print key "\t" escaped(scalar(i, rest, 0))
		else if (key == "bootcmd" || key == "runcmd" || key == "ssh_authorized_keys" || key == "write_files") list(key, i + 1)
		else print "ignored\t" key
	}
}
