"""Checks graph files of `lamina circuit` with circuit-tracer's own classes, and GraphML with networkx.

    pip install circuit-tracer==0.5.0 networkx
    python tests/circuits/check_graph_json.py GRAPH.json [GRAPH.graphml]
Loads the JSON into circuit_tracer.frontend.graph_models.Model (the schema its server and uploads use), checks that nothing it
knows is lost on the way, and that its viewer could join every link. Communities and betweenness, if --json output of
`lamina graph --centrality --communities --json` is given as a third file, are compared with networkx.
"""
import argparse
import json
import math

from circuit_tracer.frontend.graph_models import Model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph")
    parser.add_argument("graphml", nargs="?")
    parser.add_argument("report", nargs="?")
    args = parser.parse_args()
    with open(args.graph) as file:
        text = json.load(file)
    model = Model.model_validate(text)
    kept = model.model_dump()
    for ours, theirs in zip(text["nodes"], kept["nodes"], strict=True):
        for key, value in theirs.items():
            assert ours[key] == value, (key, ours[key], value)
    ids = [n.node_id for n in model.nodes]
    known = set(ids)
    assert len(known) == len(ids), "node ids come twice"
    for link in model.links:
        assert link["source"] in known and link["target"] in known and math.isfinite(link["weight"])
    n = len(model.metadata.prompt_tokens)
    assert all(0 <= node.ctx_idx < n for node in model.nodes)
    logits = [node for node in model.nodes if node.feature_type == "logit"]
    assert sum(node.is_target_logit for node in logits) == 1
    for node in logits:  # as the viewer takes the probability from the text
        assert abs(float(node.clerp.split("(p=")[1].split(")")[0]) - node.token_prob) < 1e-3
    print(f"{args.graph}: {len(ids)} nodes, {len(model.links)} links accepted")
    if not args.graphml:
        return
    import networkx

    graph = networkx.read_graphml(args.graphml)
    assert set(graph.nodes) == set(ids) and graph.number_of_edges() == len(model.links)
    for link in model.links:
        assert abs(graph.edges[link["source"], link["target"]]["weight"] - link["weight"]) <= 1e-6 * abs(link["weight"])
    print(f"{args.graphml}: the same graph")
    if not args.report:
        return
    with open(args.report) as file:
        report = json.load(file)
    total = {t: sum(abs(d["weight"]) for _, _, d in graph.in_edges(t, data=True)) for t in graph}
    for s, t, d in graph.edges(data=True):
        d["distance"] = -math.log(abs(d["weight"]) / total[t])
        d["size"] = abs(d["weight"])
    theirs = networkx.betweenness_centrality(graph, weight="distance", normalized=False)
    worst = max(abs(theirs[i] - report["centrality"][i]["betweenness"]) for i in graph)
    print(f"betweenness: off networkx by at most {worst:.3g}")
    assert worst < 1e-6
    undirected = networkx.Graph()
    undirected.add_nodes_from(graph)
    for s, t, d in graph.edges(data=True):
        undirected.add_edge(s, t, weight=d["size"])
    groups = {}
    for node, c in report["communities"]["of"].items():
        groups.setdefault(c, set()).add(node)
    modularity = networkx.community.modularity(undirected, groups.values())
    best = networkx.community.modularity(undirected, networkx.community.louvain_communities(undirected, seed=0))
    print(f"modularity: {report['communities']['modularity']:.6f}, networkx says {modularity:.6f} of these groups and "
          f"finds {best:.6f}")
    assert abs(modularity - report["communities"]["modularity"]) < 1e-6 and modularity > best - 0.03


if __name__ == "__main__":
    main()
