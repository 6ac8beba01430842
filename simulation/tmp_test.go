package simulation
import ("testing";"fmt"
"github.com/unkai-cloud/unkai/base/state"
"github.com/unkai-cloud/unkai/core/operation"
)
func TestTmp(t *testing.T){
 count:=map[string]int{}
 for seed:=range uint64(10){
 w,_:=newWorld(t.Context(),Options{Seed:seed})
 for range w.Steps { if err:=w.step();err!=nil{t.Fatal(err)} }
 if err:=w.settle();err!=nil{t.Error(err)}
 for o:=range operation.Table().Peek(w.control.state.Latest(),"",state.Range{}){ switch o.Verb{case "migrate","live-migration","resize","resize-revert","evacuate","live_migration_force_complete","resize-confirm":
  count[o.Verb+" "+string(o.Outcome)+" "+o.Message]++ }}
 }
 for k,v:=range count{fmt.Println(v,k)}
}
