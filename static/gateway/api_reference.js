// The API reference: Swagger UI over the document of this server, with nothing from elsewhere.

SwaggerUIBundle({
  url: "/v1/openapi.json",
  dom_id: "#api-reference",
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: false, // a token stays in no storage of the browser
  validatorUrl: null, // else the page asks a validator on the internet
});
