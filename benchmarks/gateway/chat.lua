-- A small chat request over and over, and at the end one line of JSON: what came of them.
wrk.method = "POST"
wrk.body = '{"model":"nothing","messages":[{"role":"user","content":"Hello, how are you?"}],"max_tokens":64}'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCHMARK_KEY")

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"n_requests":%d,"seconds":%f,"p50_ms":%f,"p95_ms":%f,"n_refused":%d,"n_broken":%d}\n',
    summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
