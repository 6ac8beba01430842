package etcd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// layout spells keys and values; see the package's comment.
type layout struct{ prefix string }

func (l layout) head() string    { return l.prefix + "head" }
func (l layout) term() string    { return l.prefix + "term" }
func (l layout) objects() string { return l.prefix + "o/" }

func (l layout) object(kind string, id resource.ID) string {
	return l.prefix + "o/" + kind + "/" + string(id[:])
}

// parseObject is the inverse of object; false for any other key.
func (l layout) parseObject(key []byte) (kind string, id resource.ID, ok bool) {
	rest, ok := bytes.CutPrefix(key, []byte(l.objects()))
	if !ok || len(rest) < len(id)+2 || rest[len(rest)-len(id)-1] != '/' {
		return "", id, false
	}
	copy(id[:], rest[len(rest)-len(id):])
	return string(rest[:len(rest)-len(id)-1]), id, true
}

func spellValue(r state.Record) string {
	var b strings.Builder
	b.Grow(len(r.Value) + 8)
	b.WriteString(strconv.Itoa(r.Version))
	b.WriteByte(' ')
	b.WriteString(strconv.Itoa(r.Tx))
	b.WriteByte(' ')
	b.Write(r.Value)
	return b.String()
}

func parseValue(raw []byte) (version, tx int, value []byte, err error) {
	first, rest, ok := bytes.Cut(raw, []byte(" "))
	second, value, ok2 := bytes.Cut(rest, []byte(" "))
	if !ok || !ok2 {
		return 0, 0, nil, fmt.Errorf("a stored value has no version: %.40q", raw)
	}
	if version, err = strconv.Atoi(string(first)); err != nil {
		return 0, 0, nil, fmt.Errorf("version of a stored value: %w", err)
	}
	if tx, err = strconv.Atoi(string(second)); err != nil {
		return 0, 0, nil, fmt.Errorf("transaction of a stored value: %w", err)
	}
	return version, tx, value, nil
}

// headValue is what the head key holds: all of a batch that is not in its objects.
type headValue struct {
	Term    int64
	Seq     int64 // with Term it names this batch and no other
	Txs     []state.TxInfo
	Gone    []goneRecord    `json:",omitempty"` // which transaction deleted what
	Earlier []earlierRecord `json:",omitempty"`
}

type goneRecord struct {
	Kind string
	ID   resource.ID
	Tx   int
}

type earlierRecord struct {
	Kind    string
	ID      resource.ID
	Tx      int
	Version int             `json:",omitempty"`
	Value   json.RawMessage `json:",omitempty"` // absent: it was deleted
}

func (h headValue) revision() int64 { return h.Txs[len(h.Txs)-1].Revision }

func (h headValue) stateHead() state.Head {
	last := h.Txs[len(h.Txs)-1]
	return state.Head{Revision: last.Revision, Time: last.Time}
}

// mark begins the value of a head at a revision: between mark(n)+" " and
// mark(n)+"!" lie all values of a head at revision n and none else.
func mark(revision int64) string { return fmt.Sprintf("%020d", revision) }

func headOf(b state.Batch, seq int64) headValue {
	h := headValue{Term: b.Term, Seq: seq, Txs: b.Txs}
	for _, r := range b.Records {
		if r.Value == nil {
			h.Gone = append(h.Gone, goneRecord{r.Kind, r.ID, r.Tx})
		}
	}
	for _, r := range b.Earlier {
		h.Earlier = append(h.Earlier, earlierRecord{r.Kind, r.ID, r.Tx, r.Version, r.Value})
	}
	return h
}

func spellHead(h headValue) (string, error) {
	raw, err := json.Marshal(h)
	if err != nil {
		return "", fmt.Errorf("encode the head: %w", err)
	}
	return mark(h.revision()) + " " + string(raw), nil
}

func parseHead(raw []byte) (headValue, error) {
	var h headValue
	_, rest, ok := bytes.Cut(raw, []byte(" "))
	if !ok {
		return h, fmt.Errorf("the stored head has no revision: %.40q", raw)
	}
	if err := json.Unmarshal(rest, &h); err != nil {
		return h, fmt.Errorf("decode the head: %w", err)
	}
	if len(h.Txs) == 0 {
		return h, fmt.Errorf("the stored head has no transaction")
	}
	return h, nil
}

// headRevision reads the revision alone.
func headRevision(raw []byte) (int64, error) {
	first, _, _ := bytes.Cut(raw, []byte(" "))
	n, err := strconv.ParseInt(string(first), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("revision of the stored head: %w", err)
	}
	return n, nil
}

func spellTerm(term, attempt int64) string { return fmt.Sprintf("%d %d", term, attempt) }

func parseTerm(raw []byte) (int64, error) {
	first, _, _ := bytes.Cut(raw, []byte(" "))
	n, err := strconv.ParseInt(string(first), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the stored term: %w", err)
	}
	return n, nil
}
